"""Two people who talk about one concept, as a play is written."""

import random

from miniature.prose.concepts import Concept
from miniature.prose.document import Document
from miniature.prose.people import somebody
from miniature.prose.stories import Cast, fill
from miniature.world import World

_GREETINGS = ("Hello, {M}.", "Good morning, {M}.", "There you are, {M}.", "Good evening, {M}.")
_ANSWERS = ("Hello, {N}.", "Nice to see you, {N}.", "How are you, {N}?", "What is new, {N}?")
_LINES = (
    "{Truth}.",
    "I think that {truth}.",
    "Do you believe that {truth}?",
    "Yesterday {scene}.",
    "Yes, and {scene}.",
    "Have you seen the {thing}?",
    "I saw the {thing} and the {thing2}.",
    "I know somebody who {deed}.",
    "Yesterday I {deed}.",
    "Why? Because {truth}.",
    "It was so {q}.",
    "No, but I {deed}.",
    "Tell me more about the {thing}.",
    "The {thing} was {q}, was it not?",
)
_FAREWELLS = ("Goodbye, {M}.", "See you tomorrow, {M}.", "I have to go now, {M}.")


def dialogue(world: World, concepts: list[Concept], draw: random.Random) -> Document:
    """Three to six lines, sometimes with a greeting before and a farewell after."""
    concept = draw.choice(concepts)
    cast = Cast(hero=somebody(world, draw), friend=somebody(world, draw))
    while cast.friend.name == cast.hero.name:
        cast = Cast(hero=cast.hero, friend=somebody(world, draw))
    frames: list[str] = [*draw.sample(_LINES, draw.randint(3, 6))]
    if draw.random() < 0.6:
        frames = [draw.choice(_GREETINGS), draw.choice(_ANSWERS), *frames]
    if draw.random() < 0.3 and len(frames) % 2 == 0:
        frames.append(draw.choice(_FAREWELLS))
    names = (cast.hero.name, cast.friend.name)
    lines = [f"{names[i % 2]}: {fill(f, concept, cast, draw)}" for i, f in enumerate(frames)]
    return Document(text="\n".join(lines), kind="dialogue", concepts=(concept.name,))
