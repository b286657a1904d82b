"""Sentiment: what a face feels."""

import random

from miniature.sight.item import Item, Split, Task
from miniature.sight.moods import MOODS
from miniature.sight.person import names
from miniature.sight.sprites import face, ground, lit, put, world
from miniature.world import SCENES

SIDES = (52, 58, 64)
Content = tuple[str, str, str | None]


def think(draw: random.Random) -> Content:
    """Whose face, how it feels, and where.

    Were moods of a person held out, a model that knows the person would exclude the right answer.
    """
    return draw.choice(names()), draw.choice(tuple(MOODS)), draw.choice((None, *SCENES))


def show(content: Content, draw: random.Random, split: Split) -> Item:
    """A face from near; in words, two signs of the mood among what else there is to see."""
    name, mood, place = content
    size = draw.choice(TASK.sizes)
    canvas = ground(place, size, draw)
    x, y = size[0] / 2 + draw.uniform(-5, 5), size[1] / 2 + draw.uniform(-3, 3)
    put(canvas, face(name, mood, draw.choice(SIDES)), x, y)
    one = world().person(name)
    if one is None:
        raise KeyError(name)
    told = [*draw.sample(MOODS[mood], 2), f"{one.look.skin} skin", f"a {one.look.shirt} shirt"]
    return Item(
        task="feeling",
        split=split,
        picture=lit(canvas, draw),
        description=", ".join(draw.sample(told, len(told))),
        question="What does this face feel?",
        answer=mood,
        labels=tuple(MOODS),
    )


TASK = Task(name="feeling", labels=tuple(MOODS), sizes=((64, 64), (80, 64)), think=think, show=show)
