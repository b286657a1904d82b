"""Who the texts speak of: forty first names, and the people of the pictures."""

import random
from dataclasses import dataclass

from miniature.world import Person, World

_GIRLS = (
    "Mara Lena Anna Nina Rosa Emma Ida Clara Lucy Sara "
    "Julia Alice Ella Maria Kate Eva Sophie Jane Helen Grace"
)
_BOYS = (
    "Tom Ben Max Paul Leo Hugo Jack Sam Peter Oscar "
    "David Adam Felix Jonas Simon Mark Henry Luke Daniel Karl"
)
FIRST_NAMES = tuple(sorted([*_GIRLS.split(), *_BOYS.split()]))


@dataclass(frozen=True, kw_only=True)
class Somebody:
    """A name and the pronouns that go with it."""

    name: str
    he: str
    his: str


def somebody(world: World, draw: random.Random) -> Somebody:
    """A first name, or now and then a person of the pictures."""
    if draw.random() < 0.2:
        return of_world(draw.choice(world.people), world)
    name = draw.choice(FIRST_NAMES)
    return _she(name) if name in _GIRLS.split() else _he(name)


def of_world(person: Person, world: World) -> Somebody:
    """A person of the pictures: bearded ones and every second other are men."""
    name = person.name.title()
    man = person.look.beard or world.people.index(person) % 2
    return _he(name) if man else _she(name)


def _he(name: str) -> Somebody:
    return Somebody(name=name, he="he", his="his")


def _she(name: str) -> Somebody:
    return Somebody(name=name, he="she", his="her")
