"""Multiple choice about the colours of objects just told."""

import random
from dataclasses import dataclass
from functools import cache

from miniature.prose.document import Document
from miniature.world import COLOURS

OBJECTS = (
    "box",
    "cup",
    "hat",
    "door",
    "chair",
    "lamp",
    "pen",
    "shirt",
    "bag",
    "ball",
    "book",
    "plate",
    "key",
    "table",
    "shoe",
    "bottle",
)
ALL_COLOURS = (*COLOURS, "black", "white", "grey", "gold")
LETTERS = ("A", "B", "C", "D")
_ALPHABET = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is told of objects, which of them is asked, and the choices in their order."""

    told: tuple[tuple[str, str], ...]
    asked: str
    colours: tuple[str, ...]
    letters: tuple[str, ...] = LETTERS

    @property
    def prompt(self) -> str:
        """The question up to the letter, which follows with a space."""
        told = ", ".join(f"the {thing} is {colour}" for thing, colour in self.told)
        lines = [f"The{told[3:]}. What colour is the {self.asked}?"]
        pairs = zip(self.letters, self.colours, strict=True)
        lines += [f"{letter}. {colour}" for letter, colour in pairs]
        return "\n".join([*lines, "Answer:"])

    @property
    def answer(self) -> str:
        """The letter of the asked object's colour."""
        return self.letters[self.colours.index(dict(self.told)[self.asked])]


@cache
def held_out_looks() -> frozenset[tuple[str, str]]:
    """The tenth of all objects with a colour about which training never asks."""
    every = [(thing, colour) for thing in OBJECTS for colour in ALL_COLOURS]
    return frozenset(random.Random(13).sample(every, len(every) // 10))  # noqa: S311


def draw_choice(
    draw: random.Random, *, held_out: bool = False, plain: bool = False, objects: int | None = None
) -> Choice:
    """A question that training shows, or never shows; `plain` ones have four choices, A to D."""
    while True:
        things = draw.sample(OBJECTS, objects or draw.choice((1, 2, 2, 3)))
        n = 4 if plain else draw.choice((max(2, len(things)), 4, 4))
        colours = draw.sample(ALL_COLOURS, n)
        told = tuple(zip(things, colours, strict=False))
        asked = draw.choice(things)
        if ((asked, dict(told)[asked]) in held_out_looks()) is not held_out:
            continue
        other = not plain and draw.random() < 0.2
        letters = tuple(draw.sample(_ALPHABET, n)) if other else LETTERS[:n]
        shuffled = tuple(draw.sample(colours, n))
        return Choice(told=told, asked=asked, colours=shuffled, letters=letters)


def choices(draw: random.Random) -> Document:
    """One to three questions with their answers, or one of the exercises that lead there."""
    if draw.random() < 0.35:
        told = [f"{c.prompt} {c.answer}" for c in _drawn(draw.randint(1, 3), draw)]
        return Document(text="\n\n".join(told), kind="choices")
    exercise = draw.choice((_colours_of, _letters_of, _letters_of, _both))
    return Document(text=exercise(draw_choice(draw), draw), kind="choices")


def _drawn(n: int, draw: random.Random) -> list[Choice]:
    return [draw_choice(draw) for _ in range(n)]


def _colours_of(choice: Choice, draw: random.Random) -> str:
    """Which colour has each object? Without letters."""
    told = choice.prompt.split(" What colour")[0]
    asked = [f"What colour is the {t}? {c}." for t, c in _askable(choice, draw)]
    return " ".join([told, *asked])


def _letters_of(choice: Choice, draw: random.Random) -> str:
    """Which letter has each colour? Without objects."""
    pairs = list(zip(choice.letters, choice.colours, strict=True))
    asked = draw.sample(pairs, len(pairs))
    lines = [f"{letter}. {colour}" for letter, colour in pairs]
    if draw.random() < 0.4:
        letter, colour = asked[0]
        return "\n".join([f"The colour is {colour}.", *lines, f"Answer: {letter}"])
    return "\n".join([*lines, *(f"The colour is {c}.\nAnswer: {a}" for a, c in asked)])


def _both(choice: Choice, draw: random.Random) -> str:
    """All objects are asked about after one list of letters."""
    told = choice.prompt.split(" What colour")[0]
    lines = choice.prompt.splitlines()[1:-1]
    letter_of = dict(zip(choice.colours, choice.letters, strict=True))
    asked = [f"What colour is the {t}?\nAnswer: {letter_of[c]}" for t, c in _askable(choice, draw)]
    return "\n".join([told, *lines, *asked])


def _askable(choice: Choice, draw: random.Random) -> list[tuple[str, str]]:
    """The objects that training may ask about, shuffled."""
    found = [look for look in choice.told if look not in held_out_looks()]
    return draw.sample(found, len(found))
