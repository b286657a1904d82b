"""Run every `bench_*.py`, show the figures, and keep them in `docs/`.

Each file has `run()`, which returns or yields `Figure`s; what it may be told (`model`, `device`,
`smoke`, `seconds`) are parameters of that function. A bench that breaks does not end the others,
and keeps the figures that it yielded before. Exit status: 1 if one broke or a target was missed.
"""

import argparse
import importlib
import inspect
import pkgutil
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

import benches
from benches.figures import Figure, NotHere
from benches.page import Page, Section, table

DOCS = Path(__file__).parent.parent / "docs"
BY_NAME_ONLY = {"gpu"}
"""Benches that are not part of `make bench`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    asked = _arguments(arguments)
    told = {name: getattr(asked, name) for name in ("model", "device", "smoke", "seconds")}
    names = asked.only or [n for n in every_name() if n not in BY_NAME_ONLY]
    page = Page(asked.out or DOCS) if asked.out or not asked.smoke else None
    return run_all(names, load, told, page, Console(width=120))


def run_all(
    names: Sequence[str],
    find: Callable[[str], Any],
    told: Mapping[str, Any],
    page: Page | None,
    console: Console,
) -> int:
    """Run the benches one after another; each figure is written as soon as it is there.

    Args:
        names: Of the benches.
        find: Gives the module of a name.
        told: What benches may be told; each takes the keys that its `run` knows.
        page: Where the sections go; None shows them only.
        console: Where the tables go.
    """
    broken, missed = [], []
    for name in names:
        title, figures = name, list[Figure]()
        try:
            module = find(name)
            for title, figure in _told(name, module, told, console):
                figures.append(figure)
                if page is not None:
                    page.put(title, _section(module, figures))
        except NotHere as lacking:
            console.print(f"{name}: {lacking}", markup=False)
            broken.append(name)
        except Exception:  # noqa: BLE001 - the other benches are still worth running
            console.print_exception()
            broken.append(name)
        if figures:
            console.print(table(title, figures))
        missed += [f"{title}: {f.name}" for f in figures if f.passed is False]
    _name(console, Broken=broken, Missed=missed)
    return int(bool(broken or missed))


def _name(console: Console, **found: Sequence[str]) -> None:
    for what, which in found.items():
        if which:
            console.print(f"{what}: {'; '.join(which)}", markup=False)


def _told(
    name: str, module: Any, told: Mapping[str, Any], console: Console
) -> Iterator[tuple[str, Figure]]:
    """The section's title with each figure; those that come one by one are shown as they come."""
    taken, started = inspect.signature(module.run).parameters, time.monotonic()
    title = f"{name} on {told['device']}" if "device" in taken else name
    found = module.run(**{k: v for k, v in told.items() if k in taken and v is not None})
    for figure in found:
        if inspect.isgenerator(found):
            what, value, *_ = figure.cells
            console.print(f"{time.monotonic() - started:7.1f} s  {what}: {value}", markup=False)
            console.file.flush()
        yield title, figure


def load(name: str) -> Any:
    """The module of that bench."""
    return importlib.import_module(f"benches.bench_{name}")


def every_name() -> list[str]:
    """Of the benches that there are."""
    found = (module.name for module in pkgutil.iter_modules(benches.__path__))
    return sorted(n.removeprefix("bench_") for n in found if n.startswith("bench_"))


def _section(module: Any, figures: Sequence[Figure]) -> Section:
    machine = module.machine() if hasattr(module, "machine") else ""
    return Section(
        about=" ".join(((module.__doc__ or "") + machine).split()),
        command=shlex.join(["python", "-m", "benches", *sys.argv[1:]]),
        when=datetime.now(UTC).date().isoformat(),
        figures=figures,
    )


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(every_name())}")
    parser.add_argument("--model", type=Path, help="a model folder; the miniature if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="small sizes; written to --out only")
    parser.add_argument("--out", type=Path, help="the folder to write to; docs/ if not given")
    parser.add_argument("--seconds", type=float, help="no further part is begun after so many")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
