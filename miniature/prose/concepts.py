"""Thirty concepts and the phrases that speak of them and of nothing else.

Every phrase of a concept can stand in every sentence frame of its kind, so that frames say nothing
about concepts: things follow "the", deeds follow a person's name (past tense), scenes are whole
clauses in the past, qualities describe a day, truths are whole clauses in the present.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A topic and its phrases."""

    name: str
    about: str
    things: tuple[str, ...]
    deeds: tuple[str, ...]
    scenes: tuple[str, ...]
    qualities: tuple[str, ...]
    truths: tuple[str, ...]


def read_concepts() -> dict[str, Concept]:
    """Every concept by name, from `concepts.txt`: one field a line, phrases between bars."""
    text = (Path(__file__).parent / "concepts.txt").read_text(encoding="utf-8")
    return {c.name: c for c in map(_concept, text.strip().split("\n\n"))}


def _concept(block: str) -> Concept:
    head, *lines = block.splitlines()
    name, about = (part.strip() for part in head.split("|"))
    fields = {}
    for line in lines:
        field, phrases = line.split(":", 1)
        fields[field] = tuple(p.strip() for p in phrases.split("|"))
    return Concept(name=name, about=about, **fields)
