"""Counting: how many of one kind are among up to seven objects."""

import random

from miniature.sight.item import Item, Split, Task
from miniature.sight.sprites import ground, lit, put, thing
from miniature.world import COLOURS, THINGS

MOST = 7
KINDS = (2, 4)
"""How many kinds of objects one picture shows, at least and at most."""
SIDES = (20, 23, 26)
"""Of an object, in pixels."""
NUMBERS = tuple(str(n) for n in range(1, MOST + 1))
Content = tuple[str, tuple[str, ...]]


def many(name: str) -> str:
    """The plural of an object."""
    return name if name == "fish" else f"{name}s"


def think(draw: random.Random) -> Content:
    """What is asked for, and what is there, sorted."""
    asked, *others = draw.sample([t.name for t in THINGS], draw.randint(*KINDS))
    number = draw.randint(1, MOST)
    rest = draw.randint(0 if number > 1 else 1, MOST - number)
    return asked, tuple(sorted([asked] * number + draw.choices(others, k=rest)))


def show(content: Content, draw: random.Random, split: Split) -> Item:
    """Objects in cells of a grid, each a little out of its middle."""
    asked, names = content
    size = draw.choice(TASK.sizes)
    told = draw.sample(names, len(names))
    columns, rows = size[0] // 30, size[1] // 30
    canvas = ground(None, size, draw)
    cells = draw.sample(range(columns * rows), len(told))
    for name, cell in zip(told, cells, strict=True):
        x = (cell % columns + 0.5) * size[0] / columns + draw.uniform(-3, 3)
        y = (cell // columns + 0.5) * size[1] / rows + draw.uniform(-3, 3)
        put(canvas, thing(name, draw.choice(COLOURS), draw.choice(SIDES)), x, y)
    return Item(
        task="counting",
        split=split,
        picture=lit(canvas, draw),
        description=" ".join(told),
        question=f"How many {many(asked)} are there?",
        answer=str(names.count(asked)),
        labels=NUMBERS,
    )


TASK = Task(name="counting", labels=NUMBERS, sizes=((96, 96), (128, 64)), think=think, show=show)
