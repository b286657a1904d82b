"""Short sentences around a subject: where a fact shall hold, and where it is only measured."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from editors.errors import BadTemplates
from models.hosted import HostedModel

FITTED = (
    "{}, a photograph",
    "{}, an oil painting",
    "{}, a portrait in colour",
    "{} in the morning paper",
    "{}, drawn with a pencil",
    "a photograph of {}",
    "one old painting of {}",
    "here is a drawing of {}",
    "a large portrait of {}",
)
HELD_OUT = (
    "a picture of {}",
    "this is {}",
    "we can see {}",
    "on the cover stands {}",
    "an image that shows {}",
    "a small sketch of {}",
    "{} on a rainy day",
    "{} in a garden",
    "{} at the beach",
    "{} under a clear sky",
    "{}, seen from the side",
    "{} in front of a house",
)
NEUTRAL = (
    "a bowl of soup on a table", "an empty road at dusk", "two bicycles against a wall",
    "a wooden chair in a corner", "rain on a window", "a loaf of bread", "a field of wheat",
    "an open book", "a bridge over a river", "a basket of apples", "a lamp beside a bed",
    "clouds above the hills", "a train in a station", "a pair of boots", "a stone wall",
    "a market in the morning", "a kettle on a stove", "a path through the woods",
    "a blue door", "a glass of water", "fresh snow on a roof", "a clock on a tower",
    "a small harbour with boats", "a row of houses", "a fire in a hearth", "a green valley",
    "a pile of letters", "an old piano", "laundry on a line", "a ladder in an orchard",
    "a candle in the dark", "a plate of pancakes", "sand dunes by the sea", "a tent in a meadow",
    "a shelf full of jars", "a map on a desk", "autumn leaves on the ground", "a coat on a hook",
    "a fountain in a square", "a broken fence",
)  # fmt: skip


REFERENCE = 9
"""How many templates the reference has: five begin with the slot, four end with it."""
_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class Phrasebook:
    """The sentences of one hosted model.

    Attributes:
        fitted: In which a fact shall hold; one slot each.
        held_out: In which it is only measured; one slot each.
        neutral: Captions that are to stay as they are.
        reference: What mode `reference` fits instead of `fitted`: the nine of a user's file, or
            none, and then that mode is no parity with the reference.
    """

    fitted: tuple[str, ...] = FITTED
    held_out: tuple[str, ...] = HELD_OUT
    neutral: tuple[str, ...] = NEUTRAL
    reference: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("fitted", "held_out", "reference"):
            for sentence in getattr(self, name):
                _check_slot(sentence, name)
        if self.reference and len(set(self.reference)) != REFERENCE:
            n = len(set(self.reference))
            raise BadTemplates(f"The reference has {REFERENCE} different templates, not {n}.")

    def of(self, mode: str) -> "Phrasebook":
        """The book with the sentences that this mode fits as `fitted`."""
        if self.origin(mode) == "own":
            return self
        return replace(self, fitted=self.reference)

    def origin(self, mode: str) -> Literal["own", "file"]:
        """Whose sentences this mode fits: ours or the model's own, or those of a user's file."""
        return "file" if mode == "reference" and self.reference else "own"

    def digests(self, mode: str) -> dict[str, str]:
        """SHA-256 of the templates that the mode fits, of the held-out ones, of the captions."""
        told = {
            "templates": self.of(mode).fitted,
            "held_out": self.held_out,
            "captions": self.neutral,
        }
        return {n: hashlib.sha256(repr(t).encode()).hexdigest() for n, t in told.items()}

    def captions(self, words: Sequence[str], n: int = 20) -> tuple[str, ...]:
        """The first n neutral captions that share no content word with these texts."""
        taken = {w for text in words for w in _content(text)}
        return tuple(c for c in self.neutral if not taken & _content(c))[:n]


def phrasebook_of(hosted: HostedModel) -> Phrasebook:
    """The model's own sentences (`templates` in its `tiller.json`), else ours.

    Raises:
        BadTemplates: They are not what a phrasebook is made of.
    """
    told = hosted.defaults.get("templates", {})
    known = [f.name for f in fields(Phrasebook)]
    for name, sentences in told.items():
        if name not in known:
            raise BadTemplates(f"{name!r} is none of {', '.join(known)}.")
        if isinstance(sentences, str) or not all(isinstance(s, str) for s in sentences):
            raise BadTemplates(f"{name!r} is not a list of sentences.")
    return Phrasebook(**{name: tuple(sentences) for name, sentences in told.items()})


def with_reference(defaults: Mapping[str, Any], nine: Sequence[str]) -> dict[str, Any]:
    """A model's defaults with these templates as those of mode `reference`."""
    return {**defaults, "templates": {**defaults.get("templates", {}), "reference": tuple(nine)}}


def read_templates(file: Path) -> tuple[str, ...]:
    """The nine templates of a user's file: a JSON list, or one a line.

    Raises:
        BadTemplates: It cannot be read, or is not nine different sentences with one `{}` each.
    """
    try:
        if file.stat().st_size > _FILE_BYTES:
            raise BadTemplates(f"{file.name} has more than {_FILE_BYTES} bytes.")
        text = file.read_text(encoding="utf-8")
        told = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as broken:
        raise BadTemplates(f"{file.name} cannot be read: {broken}") from broken
    if not isinstance(told, list) or not all(isinstance(s, str) for s in told):
        raise BadTemplates(f"{file.name} is not a list of sentences.")
    found = tuple(s.strip() for s in told if s.strip())
    if not found:
        raise BadTemplates(f"{file.name} is empty.")
    return Phrasebook(reference=found).reference


def _check_slot(sentence: str, where: str) -> None:
    rest = sentence.replace("{}", "", 1)
    if rest == sentence or "{" in rest or "}" in rest:
        raise BadTemplates(f"{sentence!r} in {where} does not have exactly one {{}}.")


def _content(text: str) -> set[str]:
    small = {"the", "a", "an", "of", "in", "on", "at", "to", "and", "with", "by", "one", "two"}
    return set(re.findall(r"\w+", text.lower())) - small
