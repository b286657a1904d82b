"""`tiller see`: ask a model about pictures, with or without back-patching."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from service.calls import given
from service.cli_chat import notes, steering_of
from service.client import DEFAULT_URL, Tiller, TillerError
from service.client_language import SEER, words

out, err = Console(highlight=False), Console(stderr=True, highlight=False)
Json = dict[str, Any]
_PART = re.compile(r"content\[(\d+)\]\.image_url\.url$")
"""The pictures are the first parts of their message."""
_LONGEST = 200
"""Of a name that is told: a picture may stand in its address."""


def see(  # noqa: PLR0913, PLR0917 - one argument per option
    pictures: Annotated[
        list[str] | None,
        typer.Argument(help="Files, or addresses that the service may fetch."),
    ] = None,
    question: Annotated[str, typer.Argument(help="What to ask about them.")] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="A model, a variant, or base+name@alias.")
    ] = SEER,
    backpatch: Annotated[
        str | None, typer.Option("--backpatch", "-b", help="A preset: counting@live.")
    ] = None,
    source: Annotated[int | None, typer.Option(help="A plan: from behind this layer")] = None,
    target: Annotated[int | None, typer.Option(help="back to behind this one.")] = None,
    window: Annotated[int | None, typer.Option(help="Odd: neighbouring pairs.")] = None,
    loops: Annotated[int | None, typer.Option(help="Patched passes.")] = None,
    positions: Annotated[str | None, typer.Option(help="visual or reference.")] = None,
    steer: Annotated[
        list[str] | None, typer.Option("--steer", "-s", help='"the sea=1.5", "sae:1234=2".')
    ] = None,
    edits: Annotated[list[str] | None, typer.Option("--edit", "-e", help="cheerful@live")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also say it without any change.")
    ] = False,
    seed: Annotated[int | None, typer.Option()] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option()] = None,
    url: Annotated[str, typer.Option("--url", envvar="TILLER_URL")] = DEFAULT_URL,
    api_key: Annotated[str | None, typer.Option("--api-key", envvar="TILLER_API_KEY")] = None,
) -> None:
    """Ask about pictures; write late states of their tokens back into an early layer."""
    if not pictures:
        missing = "question behind" if Path(question).is_file() else "picture in front of"
        raise typer.BadParameter(
            f"There is no {missing} {question!r}." if question else "Name a picture and a question."
        )
    plan = {"source": source, "target": target, "window": window}
    asked: Json = {
        "model": model,
        "backpatch": plan_of(backpatch, given({**plan, "loops": loops, "positions": positions})),
        "edits": edits or (),
        "steering": steering_of(steer or (), (), (), None),
        "system": system,
        "seed": seed,
        "temperature": temperature,
        "max_tokens": max_tokens,
    }
    shown = [_shown(picture) for picture in pictures]
    with Tiller(url, api_key) as tiller, _naming(pictures):
        if not compare:
            _told(tiller, shown, question, asked)
            return
        [text] = tiller.see(shown, question, compare=True, **asked)
    for label, said in (("changed", text.text), ("plain", text.plain or "")):
        out.print(f"[bold]{label}[/]")
        out.print(said, markup=False, soft_wrap=True)
    _note(dict(text.tiller))


def plan_of(preset: str | None, plan: Json) -> str | Json | None:
    """The request's `backpatch`: a preset's name, or a plan.

    Raises:
        BadParameter: Both.
    """
    if preset is not None and plan:
        raise typer.BadParameter("A preset keeps its own plan.", param_hint="--backpatch")
    return preset or plan or None


def _shown(picture: str) -> str | bytes:
    if picture.startswith(("http://", "https://", "data:")):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{picture}: {error.strerror}", param_hint="PICTURES") from None


@contextmanager
def _naming(pictures: Sequence[str]) -> Iterator[None]:
    """A picture that is refused is named as it was named here."""
    try:
        yield
    except TillerError as error:
        if found := _PART.search(error.param):
            named = pictures[int(found[1])]
            error.problem = error.problem.replace(error.param, named[:_LONGEST])
        raise


def _told(tiller: Tiller, shown: list[str | bytes], question: str, asked: Json) -> None:
    """The answer as it is written, then what was applied."""
    told: list[Json] = [{}]

    def heard() -> Any:
        for event in tiller.texts.see_events(shown, question, **asked):
            told[:] = [event.get("tiller", {})]
            yield event

    for word in words(heard()):
        out.print(word, end="", markup=False, soft_wrap=True)
    out.print()
    _note(*told)


def _note(tiller: Json) -> None:
    for note in notes(tiller):
        err.print(f"[dim]{escape(note)}[/]", soft_wrap=True)
