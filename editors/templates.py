"""Short sentences around a subject: where a fact shall hold, and where it is only measured."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class Phrasebook:
    """The sentences of one hosted model: fitted, held out for the report, and neutral captions."""

    fitted: tuple[str, ...] = FITTED
    held_out: tuple[str, ...] = HELD_OUT
    neutral: tuple[str, ...] = NEUTRAL

    @property
    def digest(self) -> str:
        """SHA-256 of all sentences."""
        return hashlib.sha256(repr((self.fitted, self.held_out, self.neutral)).encode()).hexdigest()

    def captions(self, words: Sequence[str], n: int = 20) -> tuple[str, ...]:
        """The first n neutral captions that share no content word with these texts."""
        taken = {w for text in words for w in _content(text)}
        return tuple(c for c in self.neutral if not taken & _content(c))[:n]


def phrasebook_of(hosted: HostedModel) -> Phrasebook:
    """The model's own sentences (`templates` in its `tiller.json`), else ours."""
    told = hosted.defaults.get("templates", {})
    return Phrasebook(**{name: tuple(sentences) for name, sentences in told.items()})


def _content(text: str) -> set[str]:
    small = {"the", "a", "an", "of", "in", "on", "at", "to", "and", "with", "by", "one", "two"}
    return set(re.findall(r"\w+", text.lower())) - small
