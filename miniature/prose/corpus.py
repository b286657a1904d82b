"""All kinds of text in fixed shares, endless and the same for the same seed."""

import random
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice

from miniature.prose.arithmetic import arithmetic
from miniature.prose.choices import choices
from miniature.prose.concepts import Concept, read_concepts
from miniature.prose.counting import counting
from miniature.prose.dialogue import dialogue
from miniature.prose.document import Document
from miniature.prose.indirect_object import indirect_object
from miniature.prose.instructions import instructions
from miniature.prose.knowledge import facts
from miniature.prose.stories import opened, story
from miniature.world import World, make_world

SHARES = {
    "story": 0.19,
    "opened": 0.12,
    "dialogue": 0.08,
    "facts": 0.12,
    "counting": 0.03,
    "arithmetic": 0.075,
    "indirect object": 0.115,
    "choices": 0.11,
    "chat": 0.16,
}
"""Of the letters; arithmetic's are three to four times as many tokens."""
MORE_QUESTIONS = {
    **{kind: 0.45 * share for kind, share in SHARES.items()},
    "arithmetic": 0.07,
    "choices": 0.5,
}
"""Shares of a second reading: choices are learned late, and only from many."""


def documents(
    seed: int, world: World | None = None, shares: Mapping[str, float] | None = None
) -> Iterator[Document]:
    """Endless texts; the kind that lags most behind its share comes next."""
    shares = shares or SHARES
    world, draw = world or make_world(), random.Random(seed)  # noqa: S311
    concepts = list(read_concepts().values())
    tellers = {
        "story": partial(story, world, concepts, draw),
        "opened": partial(opened, world, concepts, draw),
        "dialogue": partial(dialogue, world, concepts, draw),
        "facts": partial(facts, world, draw),
        "counting": partial(counting, draw),
        "arithmetic": partial(arithmetic, draw),
        "indirect object": partial(indirect_object, draw),
        "choices": partial(choices, draw),
        "chat": partial(instructions, world, concepts, draw),
    }
    told = {kind: draw.random() * 500 for kind in SHARES}
    while True:
        kind = min(told, key=lambda k: told[k] / shares[k])
        document = tellers[kind]()
        told[kind] += len(document.text)
        yield document


def concept_texts(seed: int, n: int, world: World | None = None) -> list[Document]:
    """Stories and opened sentences labelled with what they speak of, n of each concept.

    A text about two concepts counts for its first.
    """
    world, draw = world or make_world(), random.Random(seed)  # noqa: S311
    return [
        opened(world, [c], draw) if draw.random() < 0.5 else story(world, [c, c], draw)
        for c in _in_turn(list(read_concepts().values()), n)
    ]


def _in_turn(concepts: list[Concept], n: int) -> Iterator[Concept]:
    for _ in range(n):
        yield from concepts


def held_out_texts(n: int) -> list[Document]:
    """Texts of every kind from a seed of their own, for perplexity."""
    return list(islice(documents(seed=-1), n))
