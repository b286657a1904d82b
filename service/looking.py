"""`tiller lens`: what a text encoder knows of a prompt, layer by layer, on one sheet."""

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from service.client import DEFAULT_URL, Tiller

out, err = Console(), Console(stderr=True)


def lens(  # noqa: PLR0913, PLR0917 - one argument per option
    prompt: Annotated[str, typer.Argument(help="What to look at.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet, a PNG file.")] = Path(
        "strip.png"
    ),
    layers: Annotated[str, typer.Option(help="all, 0,4,8 or, as in Python, 0:9:2")] = "all",
    model: Annotated[str, typer.Option("--model", "-m")] = "miniature-sd",
    edits: Annotated[list[str] | None, typer.Option("--edit", "-e", help="potus@live")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=10, help="Seeds per layer.")] = 1,
    steps: Annotated[int | None, typer.Option()] = None,
    guidance: Annotated[float | None, typer.Option()] = None,
    negative: Annotated[str | None, typer.Option(help="Read in full, at every layer.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT")] = None,
    sampler: Annotated[str | None, typer.Option()] = None,
    encoder: Annotated[str | None, typer.Option(help="text, text_2, ...")] = None,
    beside: Annotated[str | None, typer.Option(help="Other paths: blank or full.")] = None,
    noise: Annotated[str | None, typer.Option(help="shared or per_layer")] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="A folder for the single pictures too.")
    ] = None,
    url: Annotated[str, typer.Option("--url", envvar="TILLER_URL")] = DEFAULT_URL,
    api_key: Annotated[str | None, typer.Option("--api-key", envvar="TILLER_API_KEY")] = None,
) -> None:
    """Draw a prompt from each layer of a text encoder: when does it know what?"""
    with Tiller(url, api_key) as tiller:
        events = tiller.images.lens_events(
            prompt,
            model=model,
            layers=layers_in(layers),
            encoder=encoder,
            beside=beside,
            noise=noise,
            edits=edits or (),
            n=n,
            seed=seed,
            size=size,
            steps=steps,
            guidance_scale=guidance,
            negative_prompt=negative,
            sampler=sampler,
        )
        applied, drawn, sheet = _watched(events, n)
    output.write_bytes(sheet)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for told in drawn:
            name = f"layer-{told['layer']:02}-seed-{told['seed']}.png"
            (pictures / name).write_bytes(base64.b64decode(told["b64_json"]))
    looked = applied["lens"]
    named = ", ".join(f"{e['name']}@{e['version']}" for e in applied["edits"]) or "none"
    shown = ", ".join(map(str, looked["layers"]))
    out.print(f"{output}  {looked['encoder']}, layers {shown}  edits {named}", soft_wrap=True)
    out.print(f"seeds {', '.join(map(str, sorted({told['seed'] for told in drawn})))}")


def layers_in(text: str) -> list[int] | dict[str, int] | str:
    """What `--layers` means: `all`, `0,4,8`, or `start:stop:step` as in Python.

    Raises:
        BadParameter: None of these.
    """
    if text == "all":
        return text
    if re.fullmatch(r"\d+(,\d+)*", text):
        return [int(part) for part in text.split(",")]
    if found := re.fullmatch(r"(\d*):(\d*)(?::(\d*))?", text):
        parts = zip(("start", "stop", "step"), found.groups(), strict=True)
        return {key: int(part) for key, part in parts if part}
    raise typer.BadParameter("write all, 0,4,8 or 0:9:2", param_hint="--layers")


def _watched(
    events: Iterable[dict[str, Any]], n: int
) -> tuple[dict[str, Any], list[dict[str, Any]], bytes]:
    """What was applied, the pictures as they came, and the sheet; behind a bar of all steps."""
    applied: dict[str, Any] = {}
    drawn: list[dict[str, Any]] = []
    sheet, rows, done = b"", 1, dict[int, int]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        task = bars.add_task("looking", total=None)
        for event in events:
            match event["type"]:
                case "tiller.applied":
                    applied = event["tiller"]
                    rows = len(applied["lens"]["layers"]) * n
                case "tiller.step":
                    done[event["index"]] = event["done"]
                    whole = rows * event["total"]
                    bars.update(task, completed=sum(done.values()), total=whole)
                case "lens.picture":
                    drawn.append(event)
                    bars.update(task, description=f"{len(drawn)} of {rows} pictures")
                case "lens.sheet":
                    sheet = base64.b64decode(event["b64_json"])
    return applied, drawn, sheet
