"""What the commands of `tiller` share: options, consoles, progress, and how a refusal is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from models.errors import Refusal
from service.client import TillerError

UNREACHABLE, REFUSED, FAILED_JOB, USAGE = 3, 1, 4, 2
"""Exit codes: nobody answers; refused; a job failed or was cancelled; wrong usage (click's)."""

out, err = Console(), Console(stderr=True)

Url = Annotated[
    str,
    typer.Option("--url", envvar="TILLER_URL", help="The service's address.", show_default=True),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="TILLER_API_KEY", help="A key, if it needs one.")
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", envvar="TILLER_CONFIG", help="A TOML file.")
]
EditName = Annotated[str, typer.Argument(help="The edit's name.")]
Replaces = Annotated[
    list[str] | None, typer.Option("--replaces", help="A live edit whose place this one takes.")
]
Alias = Annotated[str, typer.Option("--alias", help="The name that moves.")]
IfMatch = Annotated[
    int | None, typer.Option("--if-match", help="Only if the alias still has this generation.")
]


def complain(error: TillerError | Refusal) -> None:
    """Print the problem, then what to do about it."""
    err.print(f"[bold red]✗[/] {escape(error.problem)}", highlight=False)
    if error.remedy:
        err.print(f"  [dim]→[/] {escape(error.remedy)}", highlight=False)


def exit_code(error: TillerError | Refusal) -> int:
    """What a script sees."""
    if isinstance(error, TillerError) and error.code == "unreachable":
        return UNREACHABLE
    if isinstance(error, TillerError) and not error.status:
        return FAILED_JOB
    return REFUSED


@contextmanager
def bar(title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A progress bar that eats a job's events."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(title, total=1.0)

        def on_event(event: dict[str, Any]) -> None:
            if "progress" in event:
                told = f"{title}: {event.get('stage') or event.get('state') or ''}"
                progress.update(task, completed=event["progress"], description=told)

        yield on_event
