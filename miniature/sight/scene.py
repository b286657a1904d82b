"""Scenes: where it is."""

import random

from miniature.sight.item import Item, Split, Task
from miniature.sight.sprites import ground, lit, put, thing
from miniature.world import COLOURS, SCENES, THINGS

SEEN: dict[str, tuple[str, ...]] = {
    "beach": ("sand", "waves", "sun", "shells", "surf"),
    "forest": ("trees", "moss", "ferns", "trunks", "branches"),
    "city": ("houses", "windows", "road", "towers", "traffic"),
    "mountains": ("peaks", "rocks", "slopes", "meadow", "cliffs"),
    "desert": ("dunes", "cactus", "heat", "sunset", "dust"),
    "snow": ("flakes", "ice", "frost", "drifts", "cold"),
    "garden": ("fence", "lawn", "blossoms", "hedge", "beds"),
    "night": ("stars", "moon", "darkness", "shadows", "dreams"),
}
SIDES = (23, 26, 32)
MOST = 3
"""Objects that stand in the way."""
Content = tuple[str, tuple[str, ...]]


def think(draw: random.Random) -> Content:
    """Which scene, and the objects in it."""
    names = draw.sample([t.name for t in THINGS], draw.randint(1, MOST))
    return draw.choice(SCENES), tuple(sorted(names))


def show(content: Content, draw: random.Random, split: Split) -> Item:
    """A scene with objects; in words, a list of things seen there."""
    name, others = content
    size = draw.choice(TASK.sizes)
    canvas = ground(name, size, draw)
    for other in others:
        x, y = draw.uniform(12, size[0] - 12), draw.uniform(12, size[1] - 12)
        put(canvas, thing(other, draw.choice(COLOURS), draw.choice(SIDES)), x, y)
    told = [*draw.sample(SEEN[name], 2), *others]
    return Item(
        task="scene",
        split=split,
        picture=lit(canvas, draw),
        description=", ".join(draw.sample(told, len(told))),
        question="Where is this?",
        answer=name,
        labels=SCENES,
    )


TASK = Task(name="scene", labels=SCENES, sizes=((96, 64), (64, 64)), think=think, show=show)
