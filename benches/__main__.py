"""Run every `bench_*.py`, show the figures, and keep them in `docs/`.

Each file has `run() -> list[dict]`: rows of name, value, unit, target (None: a figure to read) and
passed. The page is written section by section, so that one bench can be run again by itself.
"""

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import benches

DOCS = Path(__file__).parent.parent / "docs"
PAGE, RECORD = DOCS / "benchmarks.md", DOCS / "benchmarks.json"
_HEAD = """# Benchmarks

Ratios compare two sides in one run on one machine, by turns; a median counts. Figures without a
target are there to be read. `make bench` writes this page and `benchmarks.json`.
"""


def main() -> int:
    """Run what was asked for; 1 if a target was missed or a bench broke."""
    asked = _arguments()
    console, record = Console(), _recorded()
    for name in asked.only or _names():
        module = importlib.import_module(f"benches.bench_{name}")
        wanted = {"model": asked.model, "device": asked.device}
        taken = inspect.signature(module.run).parameters
        rows = module.run(**{k: v for k, v in wanted.items() if k in taken and v is not None})
        section = f"{name} on {asked.device}" if "device" in taken else name
        record[section] = {
            "about": " ".join((module.__doc__ or "").split()),
            "command": " ".join(["python -m benches", *sys.argv[1:]]),
            "when": datetime.now(UTC).date().isoformat(),
            "rows": rows,
        }
        console.print(_table(section, rows))
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(_page(record))
    return int(any(row["passed"] is False for s in record.values() for row in s["rows"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="NAME", help="benches to run; all")
    parser.add_argument("--model", type=Path, help="a model folder; the miniature if not given")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def _names() -> list[str]:
    found = (module.name for module in pkgutil.iter_modules(benches.__path__))
    return sorted(n.removeprefix("bench_") for n in found if n.startswith("bench_"))


def _recorded() -> dict[str, Any]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("what", "value", "target", "", title=title, title_justify="left")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    target = "" if row["target"] is None else f"{row['target']:g} {row['unit']}"
    verdict = {None: "", True: "reached", False: "MISSED"}[row["passed"]]
    return row["name"], f"{row['value']:.4g} {row['unit']}", target, verdict


def _page(record: dict[str, Any]) -> str:
    parts = [_HEAD]
    for section, of in sorted(record.items()):
        lines = [f"| {' | '.join(_cells(row))} |" for row in of["rows"]]
        parts += [
            f"## {section}\n",
            f"{of['about']} `{of['command']}`, {of['when']}.\n",
            "\n".join(["| what | value | target | |", "|---|---|---|---|", *lines]) + "\n",
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
