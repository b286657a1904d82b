"""The figures in `docs/`: a page to read, and the same as JSON.

Both are written section by section, so that one bench can be run again by itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benches.figures import Figure

_HEAD = """# Benchmarks

Ratios compare two sides in one run on one machine, by turns; a median counts. Figures without a
target are there to be read. `make bench` writes this page and `benchmarks.json`; `make bench-gpu`
adds its section on a machine with CUDA.
"""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one bench found.

    Attributes:
        about: How it was measured.
        command: What to type to measure it again.
        when: The day.
    """

    about: str
    command: str
    when: str
    figures: Sequence[Figure]


class Page:
    """The page and the JSON beside it."""

    def __init__(self, folder: Path) -> None:
        self.text, self.record = folder / "benchmarks.md", folder / "benchmarks.json"

    def read(self) -> dict[str, Section]:
        """Sections by title, as they were written last."""
        return _sections(json.loads(self.record.read_text())) if self.record.exists() else {}

    def put(self, title: str, section: Section) -> None:
        """Write this section; the others stay."""
        self.text.parent.mkdir(parents=True, exist_ok=True)
        sections = {**self.read(), title: section}
        told = {
            name: {**asdict(of), "figures": [figure.as_dict() for figure in of.figures]}
            for name, of in sorted(sections.items())
        }
        self.record.write_text(json.dumps(told, indent=1) + "\n")
        self.text.write_text(markdown(sections))


def _sections(told: Mapping[str, Any]) -> dict[str, Section]:
    return {
        title: Section(**{**of, "figures": [Figure.from_dict(f) for f in of["figures"]]})
        for title, of in told.items()
    }


def markdown(sections: Mapping[str, Section]) -> str:
    """The page."""
    parts = [_HEAD]
    for title, of in sorted(sections.items()):
        lines = [f"| {' | '.join(figure.cells)} |" for figure in of.figures]
        parts += [
            f"## {title}\n",
            f"{of.about} `{of.command}`, {of.when}.\n",
            "\n".join(["| what | value | target | |", "|---|---|---|---|", *lines]) + "\n",
        ]
    return "\n".join(parts)


def table(title: str, figures: Sequence[Figure]) -> Table:
    """The same for a terminal."""
    shown = Table("what", "value", "target", "", title=title, title_justify="left")
    for figure in figures:
        shown.add_row(*figure.cells)
    return shown
