"""`tiller backpatch`: find a plan of back-patching for a task, and look at what was found."""

import io
import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from service.cli_shared import ApiKey, Url, bar, out
from service.client import DEFAULT_URL, Tiller

app = typer.Typer(no_args_is_help=True, help="Back-patching: which plan helps, if one does?")

_LINES = "examples.jsonl"


@app.command()
def calibrate(  # noqa: PLR0913, PLR0917 - one argument per option
    examples: Annotated[
        Path,
        typer.Option(help=f"A zip, or a folder, with {_LINES}; or such a file."),
    ],
    model: Annotated[str, typer.Option("--model", "-m")] = "miniature-vl",
    save: Annotated[
        str | None, typer.Option(help="name or name@alias of the preset, if it helps.")
    ] = None,
    save_anyway: Annotated[bool, typer.Option(help="Save it even if it does not help.")] = False,
    plan: Annotated[
        list[str] | None, typer.Option(help="source:target or source:target:window; else all.")
    ] = None,
    window: Annotated[list[int] | None, typer.Option(help="Of all plans: 1, 3 and 5.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="What an answer can be.")] = None,
    metric: Annotated[str, typer.Option(help="label or exact")] = "label",
    positions: Annotated[str, typer.Option(help="visual or reference")] = "visual",
    first: Annotated[float | None, typer.Option(help="Examples of the first round.")] = None,
    keep: Annotated[float | None, typer.Option(help="Plans that go on.")] = None,
    answers: Annotated[int | None, typer.Option(help="What choosing may ask for.")] = None,
    choosing: Annotated[float, typer.Option(help="Share of the examples that choose.")] = 0.5,
    control: Annotated[bool, typer.Option(help="The same in words.")] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Choose a plan on half of the examples, report it on the other, in pictures and in words."""
    search = {"first": first, "keep": keep, "answers": answers}
    with Tiller(url, api_key) as tiller:
        found = tiller.backpatch.calibrate(
            model=model,
            examples=_read(examples),
            labels=label or (),
            plans=[_plan(text) for text in plan or ()],
            windows=window or (),
            search={k: v for k, v in search.items() if v is not None} or None,
            metric=metric,
            positions=positions,
            choosing=choosing,
            control=control,
            seed=seed,
            save=save,
            save_anyway=save_anyway,
        )
        if not found.get("cache_hit"):
            with bar("calibration") as on_event:
                found = tiller.jobs.wait(found["id"], on_event)["result"]
        name = found.get("calibration") or found["id"]
        _show(tiller, name, output)
        _tell_preset(found["preset"])


@app.command()
def show(
    calibration: Annotated[str | None, typer.Argument(help="Its id; all when left out.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """One calibration's report, or the list of them."""
    with Tiller(url, api_key) as tiller:
        if calibration is not None:
            _show(tiller, calibration, output)
            return
        table = Table(Column("calibration", no_wrap=True), "model", "verdict")
        for one in tiller.backpatch.list():
            told = tiller.backpatch.show(one["id"])
            table.add_row(told["id"], told["model"], told["verdict"])
        out.print(table)


def _read(examples: Path) -> bytes:
    """The archive: as it lies there, or made of a folder or of a file of lines."""
    if not examples.exists():
        raise typer.BadParameter(f"there is no {examples}")
    if zipfile.is_zipfile(examples):
        return examples.read_bytes()
    folder = examples if examples.is_dir() else examples.parent
    lines = examples / _LINES if examples.is_dir() else examples
    if not lines.is_file():
        raise typer.BadParameter(f"{examples} holds no {_LINES}")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_LINES, lines.read_bytes())
        for name in sorted(_named(lines)):
            if not (folder / name).is_file():
                raise typer.BadParameter(f"{lines} names {name}, which is not there")
            archive.write(folder / name, name)
    return held.getvalue()


def _named(lines: Path) -> set[str]:
    """The files that the lines name."""
    found = set[str]()
    try:
        text = lines.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{lines} is neither a zip, a folder nor lines of JSON") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise typer.BadParameter(f"line {number} of {lines} is not JSON") from None
        if not isinstance(row, dict):
            raise typer.BadParameter(f"line {number} of {lines} is not an object")
        several = row.get("images")
        shown = [row.get("image"), *(several if isinstance(several, list) else ())]
        found |= {name for name in shown if isinstance(name, str) and name}  # else: refused there
    return {name for name in found if not name.startswith("data:")}


def _plan(text: str) -> dict[str, Any]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is not source:target or source:target:window")
    return dict(zip(("source", "target", "window"), map(int, parts), strict=False))


def _show(tiller: Tiller, name: str, output: Path | None) -> None:
    """Print the page; write all files if a folder is named."""
    told = tiller.backpatch.artifact(name, "report.md").decode()
    out.print(told.split("\n## Made with")[0], markup=False, highlight=False, soft_wrap=True)
    out.print(name, highlight=False)
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    for file in tiller.backpatch.show(name)["artifacts"]:
        (output / file).write_bytes(tiller.backpatch.artifact(name, file))
    out.print(output, highlight=False, soft_wrap=True)


def _tell_preset(saved: dict[str, Any] | None) -> None:
    if saved is None:
        return
    if not saved["saved"]:
        out.print("Not saved: it was not found to help; --save-anyway saves it.")
        return
    alias = f" ({saved['preset']}@{saved['alias']})" if saved.get("alias") else ""
    out.print(f"Saved as {saved['preset']}@{saved['version']}{alias}.", highlight=False)
