"""Sentences whose last word is whoever was named and did not act."""

import random
from functools import cache

from miniature.prose.document import Document
from miniature.prose.people import FIRST_NAMES

PLACES = (
    "shop",
    "school",
    "park",
    "market",
    "station",
    "library",
    "beach",
    "museum",
    "kitchen",
    "garden",
    "office",
    "harbour",
)
OBJECTS = (
    "drink",
    "book",
    "ring",
    "ball",
    "flower",
    "letter",
    "key",
    "coin",
    "cake",
    "hat",
    "lamp",
    "map",
)
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {object} to",
    "After {a} and {b} came to the {place}, {s} handed a {object} to",
    "While {a} and {b} were at the {place}, {s} passed a {object} to",
    "{a} and {b} met at the {place}, and {s} gave a {object} to",
    "Then {a} and {b} had a long talk at the {place}. Afterwards {s} gave a {object} to",
    "Yesterday {a} and {b} went to the {place} together, and {s} brought a {object} to",
    "The friends {a} and {b} sat in the {place} when {s} showed a {object} to",
    "Once {a} and {b} were lost near the {place}. So {s} lent a {object} to",
)


@cache
def held_out_pairs() -> frozenset[frozenset[str]]:
    """The tenth of all pairs of names that training never puts together here."""
    every = [frozenset((a, b)) for a in FIRST_NAMES for b in FIRST_NAMES if a < b]
    return frozenset(random.Random(12).sample(every, len(every) // 10))  # noqa: S311


def draw_pair(draw: random.Random) -> tuple[str, str]:
    """Two names that training may put together."""
    while True:
        a, b = draw.sample(FIRST_NAMES, 2)
        if frozenset((a, b)) not in held_out_pairs():
            return a, b


def prompt(a: str, b: str, subject: str, draw: random.Random) -> str:
    """The sentence up to the name of the one of the two who is not the subject."""
    template = draw.choice(TEMPLATES)
    return template.format(
        a=a, b=b, s=subject, place=draw.choice(PLACES), object=draw.choice(OBJECTS)
    )


def indirect_object(draw: random.Random) -> Document:
    """One to four such sentences."""
    return Document(
        text=" ".join(_sentence(draw) for _ in range(draw.randint(1, 4))), kind="indirect object"
    )


def _sentence(draw: random.Random) -> str:
    a, b = draw_pair(draw)
    subject, other = (a, b) if draw.random() < 0.5 else (b, a)
    return f"{prompt(a, b, subject, draw)} {other}."
