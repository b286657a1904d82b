"""Recognition: who somebody is, from a portrait or from what is told of the looks."""

import random

from miniature.sight.item import Item, Split, Task
from miniature.sight.sprites import ground, lit, person, put, world
from miniature.world import SCENES, Look

SIDES = (54, 60, 66)
TOLD = (4, 7)
"""How many traits are told; four are nobody else's."""
Content = tuple[str, str | None]
_PATTERNS = {"plain": "no pattern", "stripes": "stripes", "dots": "dots"}
_STYLES = {
    "short": "a short cut",
    "long": "long waves",
    "bun": "a bun",
    "curls": "curls",
    "spikes": "spikes",
}
_HATS = {"cap": "a red cap", "crown": "a crown", "tophat": "a top hat", "beanie": "a green beanie"}


def names() -> tuple[str, ...]:
    """Everybody."""
    return tuple(p.name for p in world().people)


def traits(look: Look) -> list[str]:
    """The eight traits in words."""
    hat = "no hat" if look.hat == "none" else _HATS.get(look.hat, f"a {look.hat}")
    hair = "bald" if look.hair_style == "bald" else f"hair in {_STYLES[look.hair_style]}"
    return [
        f"{look.skin} skin",
        hair,
        f"{look.hair} hair" if look.hair_style != "bald" or look.beard else "no hair",
        hat,
        f"a {look.shirt} shirt",
        f"a shirt with {_PATTERNS[look.pattern]}",
        "a beard" if look.beard else "no beard",
        "glasses" if look.glasses else "no glasses",
    ]


def think(draw: random.Random) -> Content:
    """Who, and where."""
    return draw.choice(names()), draw.choice((None, *SCENES))


def show(content: Content, draw: random.Random, split: Split) -> Item:
    """A portrait in front of a scene or a plain ground."""
    name, place = content
    size = draw.choice(TASK.sizes)
    canvas = ground(place, size, draw)
    x, y = size[0] / 2 + draw.uniform(-6, 6), size[1] / 2 + 2 + draw.uniform(-3, 5)
    put(canvas, person(name, draw.choice(SIDES)), x, y)
    one = world().person(name)
    if one is None:
        raise KeyError(name)
    told = draw.sample(traits(one.look), draw.randint(*TOLD))
    return Item(
        task="person",
        split=split,
        picture=lit(canvas, draw),
        description=", ".join(told),
        question="Who is this?",
        answer=name,
        labels=names(),
    )


TASK = Task(name="person", labels=names(), sizes=((64, 64), (64, 80)), think=think, show=show)
