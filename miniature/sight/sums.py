"""Arithmetic: the sum of two numbers of two digits, written on white."""

import random

from PIL import Image

from miniature.sight.digits import written
from miniature.sight.item import Item, Split, Task
from miniature.sight.sprites import lit

HEIGHTS = (20, 22, 24)
"""Of a digit, in pixels."""
FIRST = tuple("123456789")
"""The digits that a sum can begin with: the paper scores the first one."""
Content = tuple[int, int]


def think(draw: random.Random) -> Content:
    """Two numbers."""
    return draw.randint(10, 99), draw.randint(10, 99)


def show(content: Content, draw: random.Random, split: Split) -> Item:
    """The sum as it is said in words, written by hand."""
    a, b = content
    size, height = draw.choice(TASK.sizes), draw.choice(HEIGHTS)
    text = f"{a}+{b}="
    canvas = Image.new("RGB", size, (255, 255, 255))
    room = size[0] - 0.75 * height * len(text)
    place = draw.uniform(0.1, max(0.2, 0.9 * room)), size[1] / 2 + draw.uniform(-2, 2)
    written(canvas, text, place, height, draw)
    return Item(
        task="sum",
        split=split,
        picture=lit(canvas, draw),
        description=text,
        question="What does it come to?",
        answer=str(a + b),
        labels=FIRST,
    )


TASK = Task(name="sum", labels=FIRST, sizes=((128, 32), (112, 32)), think=think, show=show)
