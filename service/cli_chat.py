"""`tiller chat`: one message or a conversation, steered from the command line."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from service.client import DEFAULT_URL, Tiller, TillerError

out, err = Console(highlight=False), Console(stderr=True, highlight=False)
Json = dict[str, Any]
_FEATURE = re.compile(r"(.*):([0-9]+)")


def chat(  # noqa: PLR0913, PLR0917 - one argument per option
    message: Annotated[
        str | None, typer.Argument(help="What to say; without it, a conversation.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A model, a variant, or base+name@alias.")
    ] = "miniature-lm",
    steer: Annotated[
        list[str] | None,
        typer.Option("--steer", "-s", help='"the sea=1.5", or "sae:1234=2" for one feature.'),
    ] = None,
    preset: Annotated[
        list[str] | None, typer.Option("--preset", help="A steering preset: winter@live.")
    ] = None,
    vector: Annotated[
        list[str] | None, typer.Option("--vector", help="A direction: happy@live=1.5.")
    ] = None,
    edits: Annotated[list[str] | None, typer.Option("--edit", "-e", help="cheerful@live")] = None,
    mode: Annotated[
        str | None, typer.Option(help="What strengths mean: amp, raw, unit, clamp, ...")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also say it without steering and edits.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show words as they are written.")
    ] = True,
    seed: Annotated[int | None, typer.Option()] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    max_tokens: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer.")] = None,
    url: Annotated[str, typer.Option("--url", envvar="TILLER_URL")] = DEFAULT_URL,
    api_key: Annotated[str | None, typer.Option("--api-key", envvar="TILLER_API_KEY")] = None,
) -> None:
    """Talk to a language model; steer it with concepts, features, vectors or presets."""
    asked: Json = {
        "model": model,
        "edits": edits or (),
        "steering": steering_of(steer or (), preset or (), vector or (), mode),
        "seed": seed,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "stop": stop or None,
        "compare": compare or None,
    }
    if message is not None and not message.strip():
        raise typer.BadParameter("Say something, or leave the message out for a conversation.")
    said = [{"role": "system", "content": system}] if system else []
    with Tiller(url, api_key) as tiller:
        talk = Talk(tiller, asked, said, streams=stream and not compare)
        if message is not None:
            talk.say(message)
            return
        for line in _typed():
            try:
                talk.say(line)
            except TillerError as error:  # the conversation goes on without the line
                err.print(f"[bold red]✗[/] {escape(str(error))}")


def steering_of(
    steer: list[str] | tuple[()],
    presets: list[str] | tuple[()],
    vectors: list[str] | tuple[()],
    mode: str | None,
) -> list[Json]:
    """The request's `steering`: `the sea=1.5`, `sae:1234=2`, presets and vectors by name.

    `sae:1234` is a feature without a strength, which mode `ablate` asks for.

    Raises:
        BadParameter: No strength, or no number for one.
    """
    more: Json = {} if mode is None else {"mode": mode}
    entries: list[Json] = []
    for text in steer:
        bare = _FEATURE.fullmatch(text) is not None  # mode ablate takes no strength
        name, strength = (text, None) if bare else _parted(text, "--steer")
        if found := _FEATURE.fullmatch(name):
            feature: Json = {"sae": found[1], "feature": int(found[2])}
            feature |= {} if strength is None else {"strength": strength}
            entries.append({"features": [feature], **more})
        else:
            entries.append({"concept": name, "strength": strength, **more})
    for text in vectors:
        name, strength = _parted(text, "--vector") if "=" in text else (text, 1.0)
        entries.append({"vectors": [{"name": name, "strength": strength}]})
    return [*entries, *({"preset": name} for name in presets)]


def _parted(text: str, option: str) -> tuple[str, float]:
    name, equals, number = text.rpartition("=")
    try:
        strength = float(number)
    except ValueError:
        strength = None
    if not equals or not name.strip() or strength is None:
        raise typer.BadParameter(
            f'{text!r} has no strength: write "the sea=1.5"', param_hint=option
        )
    return name.strip(), strength


@dataclass
class Talk:
    """A conversation with one model under one steering."""

    tiller: Tiller
    asked: Json
    said: list[Json] = field(default_factory=list)
    streams: bool = True

    def say(self, line: str) -> None:
        """Say something, show the answer, remember both."""
        self.said.append({"role": "user", "content": line})
        try:
            answer, told = self._streamed() if self.streams else self._whole()
        except TillerError:
            self.said.pop()
            raise
        self.said.append({"role": "assistant", "content": answer})
        for note in notes(told):
            err.print(f"[dim]{escape(note)}[/]", soft_wrap=True)

    def _streamed(self) -> tuple[str, Json]:
        answer, told = "", dict[str, Any]()
        for chunk in self.tiller.texts.chat_events(self.said, **self.asked):
            told = chunk.get("tiller", told)
            for choice in chunk["choices"]:
                word = choice["delta"].get("content") or ""
                answer += word
                out.print(word, end="", markup=False, soft_wrap=True)
        out.print()
        return answer, told

    def _whole(self) -> tuple[str, Json]:
        [text] = self.tiller.chat(self.said, **self.asked)
        if text.plain is not None:
            out.print("[bold]steered[/]")
        out.print(text.text, markup=False, soft_wrap=True)
        if text.plain is not None:
            out.print("[bold]plain[/]")
            out.print(text.plain, markup=False, soft_wrap=True)
        return text.text, dict(text.tiller)


def notes(tiller: Json) -> Iterator[str]:
    """What was applied, a line for each thing."""
    for edit in tiller.get("edits", ()):
        yield f"edit {edit['name']}@{edit['version']} x {edit['strength']:g}"
    for report in tiller.get("steering", ()):
        yield from _steered(report)
    if tiller.get("backpatch"):
        yield _backpatched(tiller["backpatch"])
    if tiller.get("steering"):
        steered = sum(choice["tokens_steered"] for choice in tiller.get("choices", ()))
        yield f"{steered} tokens steered, seed {tiller['seed']}"
    yield from (f"! {warning}" for warning in tiller.get("warnings", ()))


def _backpatched(plan: Json) -> str:
    """The plan: by which name, from where to where, and how many tokens."""
    pairs = ", ".join(f"{source} -> {target}" for source, target in plan["pairs"])
    loops = f", {plan['loops']} times" if plan["loops"] > 1 else ""
    told = f"{plan['tokens']} of {plan['visual_tokens']} visual tokens back-patched, layers {pairs}"
    if plan["positions"] not in ("visual", "reference"):
        told = f"{plan['tokens']} tokens back-patched, layers {pairs}"
    came = plan.get("preset")
    return f"{told}{loops}" + (f", by {came['name']}@{came['version']}" if came else "")


def _steered(report: Json) -> Iterator[str]:
    places = ", ".join(f"{s['site']} ({s['ratio']:.2f} of the stream)" for s in report["sites"])
    for one in report.get("features", ()):
        score = one.get("output_score")
        scored = "no output score" if score is None else f"output score {score:.3g}"
        about = f" for {one['concept']!r}" if one.get("concept") else ""
        yield f"feature {one['sae']}:{one['feature']}{about}, {scored}, at {places}"
    if "vector" in report:
        yield f"vector {report['vector']} x {report['strength']:g}, at {places}"


def _typed() -> Iterator[str]:
    """The lines that somebody types, until end of file; empty ones are skipped."""
    while True:
        if sys.stdin.isatty():
            err.print("[bold]>[/] ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
