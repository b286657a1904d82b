"""Spatial order: the colour of the n-th object in a row."""

import random

from miniature.sight.item import Item, Split, Task
from miniature.sight.sprites import ground, lit, put, thing
from miniature.world import COLOURS, THINGS

SHORTEST, LONGEST = 3, 5
SIDES = (20, 23, 26)
PLACES = ("first", "second", "third", "fourth", "fifth")
Content = tuple[tuple[tuple[str, str], ...], int, str]


def think(draw: random.Random) -> Content:
    """The row from left to right, as (colour, object); which of them; from which end."""
    names = draw.sample([t.name for t in THINGS], draw.randint(SHORTEST, LONGEST))
    row = tuple((draw.choice(COLOURS), name) for name in names)
    return row, draw.randrange(len(row)), draw.choice(("left", "right"))


def show(content: Content, draw: random.Random, split: Split) -> Item:
    """Objects side by side."""
    row, place, end = content
    size = draw.choice(TASK.sizes)
    canvas = ground(None, size, draw)
    for at, (colour, name) in enumerate(row):
        x = (at + 0.5) * size[0] / len(row) + draw.uniform(-2, 2)
        y = size[1] / 2 + draw.uniform(-1, 1) * (size[1] - 26) / 3
        put(canvas, thing(name, colour, draw.choice(SIDES)), x, y)
    return Item(
        task="colour order",
        split=split,
        picture=lit(canvas, draw),
        description=", ".join(f"{colour} {name}" for colour, name in row),
        question=f"What colour is the {PLACES[place]} one from the {end}?",
        answer=(row if end == "left" else row[::-1])[place][0],
        labels=COLOURS,
    )


TASK = Task(
    name="colour order", labels=COLOURS, sizes=((128, 32), (128, 48)), think=think, show=show
)
