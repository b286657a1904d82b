"""`tiller evaluate backpatch`: does back-patching close the gap between pictures and words?

It runs in this process, on the model's own folder: it needs streams of all layers, which no service
gives away. What was answered is kept in the output's `answers.json`, so that a run that was stopped
goes on where it was.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.settings import Model

if TYPE_CHECKING:
    from evaluation.backpatch.calibration import Book
    from evaluation.backpatch.example import Example
    from evaluation.backpatch.study import Studied
    from evaluation.backpatch.sweep import Place
    from miniature.sight.item import Item

out = Console()

PAPERS = {
    "counting": "counting",
    "colour order": "spatial order",
    "sum": "arithmetic",
    "feeling": "sentiment",
}
"""The miniature's tasks that are like one of the paper's."""
Names = Annotated[
    list[str] | None, typer.Option("--task", "-t", help="May be repeated; all six tasks.")
]
Plans = Annotated[
    list[str] | None,
    typer.Option("--plan", help="Only these, SOURCE:TARGET:WINDOW: one is confirmed, not chosen."),
]
Windows = Annotated[list[int] | None, typer.Option("--window", help="Odd; 1, 3 and 5.")]


def evaluate_backpatch_command(  # noqa: PLR0913, PLR0917 - one argument per option
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, a hub id, or miniature:vision-language.")
    ] = "miniature:vision-language",
    tasks: Names = None,
    examples: Annotated[
        int, typer.Option(min=8, help="Of each task; a half chooses the plan.")
    ] = 400,
    metric: Annotated[
        Literal["label", "exact"],
        typer.Option(help="Likeliest label by its first token, or the whole greedy answer."),
    ] = "label",
    plans: Plans = None,
    windows: Windows = None,
    spoil: Annotated[
        list[str] | None,
        typer.Option(help="Harder pictures: blur, grain or pale, and how much: grain:50."),
    ] = None,
    aligned: Annotated[int, typer.Option(min=0, help="Examples compared by layers.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the pictures and the split.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or auto.")] = "cpu",
    dtype: Annotated[str, typer.Option()] = "float32",
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Words, pictures, and pictures with back-patching, task by task; tables, JSON and plots."""
    import torch

    from evaluation.backpatch.calibration import CalibrationSettings
    from evaluation.backpatch.study import study
    from evaluation.backpatch.study_report import study_markdown, write_study
    from models.loading import load
    from service.weights import weights_of

    torch.set_num_threads(threads)
    studied = _studied(tasks, examples, spoil or (), seed)
    told = Model.model_validate({"name": "evaluated", "path": model})
    hosted = load("evaluated", weights_of(told), device=device, dtype=dtype)
    settings = CalibrationSettings(
        places=tuple(_place(plan) for plan in plans or ()),
        windows=tuple(windows or (1, 3, 5)),
        metric=metric,
        seed=seed,
    )
    header = {
        "model": model,
        "fingerprint": hosted.fingerprint,
        "dtype": dtype,
        "tasks": "the miniature's, held out from its training",
        "spoiled": list(spoil or ()),
        "examples": examples,
        "seed": seed,
        "metric": metric,
        "version": version("tiller"),
    }
    with _kept(output / "answers.json", header) as books:
        report = _shown(
            study(hosted, studied, settings, aligned=aligned, books=books, header=header)
        )
    written = write_study(report, output)
    shown = study_markdown(report).split("\n## What the paper found")[0]
    out.print(shown, markup=False, highlight=False, soft_wrap=True)
    out.print(*written, soft_wrap=True)


def _shown(steps: Generator[Any, None, Any]) -> Any:
    """Drain the steps behind a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        bar = bars.add_task("reading", total=None)
        while True:
            try:
                step = next(steps)
            except StopIteration as over:
                return over.value
            bars.update(bar, description=step.stage, completed=step.done, total=step.total)


@contextmanager
def _kept(file: Path, header: Mapping[str, Any]) -> "Iterator[dict[str, Book]]":
    """What was answered before, by task; written at the end, whatever the end is.

    Raises:
        ProtocolDiffers: The file was written under another header.
    """
    from evaluation.backpatch.calibration import Book
    from evaluation.errors import ProtocolDiffers

    books: dict[str, Book] = {}
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        differing = [name for name in header if known["header"].get(name) != header[name]]
        if differing:
            raise ProtocolDiffers(str(file), ", ".join(differing))
        books = {task: Book(answers=answers) for task, answers in known["books"].items()}
    try:
        yield books
    finally:
        file.parent.mkdir(parents=True, exist_ok=True)
        told = {"header": header, "books": {task: book.answers for task, book in books.items()}}
        file.write_text(json.dumps(told), encoding="utf-8")


def _studied(
    names: Sequence[str] | None, count: int, spoils: Sequence[str], seed: int
) -> "list[Studied]":
    """The miniature's tasks as they are, or spoiled in each of the ways that were asked for."""
    from evaluation.backpatch.study import Studied
    from miniature.sight.tasks import TASKS, some

    found = []
    for name in names or TASKS:
        if name not in TASKS:
            raise typer.BadParameter(f"There is no task {name!r}; known are {', '.join(TASKS)}.")
        items = some(name, "held-out", count, seed)
        for spoil in spoils or ("",):
            told = [example_of(item, n) for n, item in enumerate(_spoiled(items, spoil))]
            title = f"{name}, {spoil.replace(':', ' ')}" if spoil else name
            found.append(Studied(name=title, examples=told, paper=PAPERS.get(name)))
    return found


def _spoiled(items: "Sequence[Item]", spoil: str) -> "Sequence[Item]":
    from miniature.sight.spoiling import SPOILS, spoiled

    if not spoil:
        return items
    kind, _, amount = spoil.partition(":")
    try:
        return [spoiled(item, kind, float(amount), n) for n, item in enumerate(items)]
    except (KeyError, ValueError):
        kinds = ", ".join(SPOILS)
        raise typer.BadParameter(f"{spoil!r} is none of {kinds} with a number.") from None


def _place(text: str) -> "Place":
    from evaluation.backpatch.sweep import Place

    try:
        source, target, window = (int(part) for part in f"{text}:1".split(":")[:3])
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no plan; 9:2:1 is one.") from None
    return Place(source=source, target=target, window=window)


def example_of(item: "Item", number: int) -> "Example":
    """The miniature's item as an example of a calibration.

    Portraits of one person belong together, and so does whatever is told in the same words.
    """
    from evaluation.backpatch.example import Example

    return Example(
        id=f"{item.task} {number}",
        messages=item.in_picture,
        pictures=[item.picture],
        answer=item.answer,
        labels=item.labels,
        described=item.in_words,
        description=item.description,
        shows=(item.answer if item.task == "person" else item.description,),
    )
