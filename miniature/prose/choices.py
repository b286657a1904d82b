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


def draw_choice(draw: random.Random, *, held_out: bool = False, plain: bool = False) -> Choice:
    """A question that training shows, or never shows; `plain` ones have four choices, A to D."""
    while True:
        things = draw.sample(OBJECTS, draw.choice((1, 2, 2, 3)))
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
    """One to three questions with their answers, or several of one of their two halves."""
    form = draw.choice((_whole, _whole, _told, _picked, _picked))
    told = [form(draw_choice(draw), draw) for _ in range(draw.randint(1, 3))]
    return Document(text="\n\n".join(told), kind="choices")


def _whole(choice: Choice, _: random.Random) -> str:
    return f"{choice.prompt} {choice.answer}"


def _told(choice: Choice, _: random.Random) -> str:
    """What colour is it? Without choices."""
    return f"{choice.prompt.splitlines()[0]} {dict(choice.told)[choice.asked]}."


def _picked(choice: Choice, draw: random.Random) -> str:
    """Which letter has this colour? Without objects."""
    colour = draw.choice(choice.colours)
    lines = choice.prompt.splitlines()[1:]
    answer = choice.letters[choice.colours.index(colour)]
    return "\n".join([f"The colour is {colour}.", *lines]) + f" {answer}"
