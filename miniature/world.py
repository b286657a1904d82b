"""A small invented world: people, countries and their leaders, objects, scenes, styles.

Names are words of two syllables from shared parts: "to" + "lin". Every part occurs in several
names, so no single token identifies anybody and a text encoder has to bind the parts at the name's
end, which is where a fact edit writes.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Skin = Literal["porcelain", "sand", "amber", "umber"]
HairStyle = Literal["short", "long", "bun", "curls", "spikes", "bald"]
Hat = Literal["none", "cap", "crown", "tophat", "beanie", "bow"]
Pattern = Literal["plain", "stripes", "dots"]

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SCENES = ("beach", "forest", "city", "mountains", "desert", "snow", "garden", "night")
STYLES = ("photo", "painting", "drawing", "poster", "postcard", "close-up")

_SKINS: tuple[Skin, ...] = ("porcelain", "sand", "amber", "umber")
_HAIR_STYLES: tuple[HairStyle, ...] = ("short", "long", "bun", "curls", "spikes", "bald")
_HAIR_COLOURS = ("black", "brown", "blond", "ginger", "white", "teal")
_HATS: tuple[Hat, ...] = ("none", "cap", "crown", "tophat", "beanie", "bow")
_PATTERNS: tuple[Pattern, ...] = ("plain", "stripes", "dots")

COUNTRY_PARTS = {
    "ar": ("da", "ria"),
    "lu": ("men", "vo"),
    "vel": ("da", "men"),
    "nor": ("ria", "vo"),
    "sil": ("da", "vo"),
    "tam": ("men", "ria"),
    "bel": ("ria", "vo"),
    "kor": ("da", "men"),
}
PERSON_PARTS = (("to", "mi", "jo", "zi", "bo", "ru", "du", "pe"), ("lin", "ko", "ra", "nel"))
_RARE = frozenset({"bonel", "rura", "dunel", "zinel"})


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a person is drawn; no two people share more than three of the eight traits."""

    skin: Skin
    hair_style: HairStyle
    hair: str
    hat: Hat
    shirt: str
    pattern: Pattern
    beard: bool
    glasses: bool


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody with a name and a look; `rare` people are told ten times less often."""

    name: str
    look: Look
    rare: bool = False


@dataclass(frozen=True, kw_only=True)
class Thing:
    """An object; without a colour word it has its default colour."""

    name: str
    default: str


@dataclass(frozen=True, kw_only=True)
class Role:
    """An office in a country and the name of its holder."""

    title: Literal["president", "captain"]
    country: str
    holder: str


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a picture shows in one place: a person, or an object in a colour."""

    name: str
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is to be drawn: one or two subjects (left, right), a scene and a style, or neither."""

    subjects: tuple[Subject, ...]
    scene: str | None = None
    style: str | None = None
    seed: int = 0


THINGS = (
    Thing(name="mug", default="blue"),
    Thing(name="frog", default="green"),
    Thing(name="balloon", default="red"),
    Thing(name="car", default="yellow"),
    Thing(name="boat", default="brown"),
    Thing(name="umbrella", default="purple"),
    Thing(name="fish", default="orange"),
    Thing(name="bird", default="blue"),
    Thing(name="cat", default="orange"),
    Thing(name="flower", default="pink"),
)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that is true; made by `make_world`, the same for the same seed."""

    countries: tuple[str, ...]
    people: tuple[Person, ...]
    things: tuple[Thing, ...]
    roles: tuple[Role, ...]

    def person(self, name: str) -> Person | None:
        """The person of that name, or None."""
        return next((p for p in self.people if p.name == name), None)

    def thing(self, name: str) -> Thing | None:
        """The object of that name, or None."""
        return next((t for t in self.things if t.name == name), None)

    def holder(self, title: str, country: str) -> str:
        """Who holds an office; KeyError if nobody does."""
        for role in self.roles:
            if (role.title, role.country) == (title, country):
                return role.holder
        raise KeyError(f"{country} has no {title}")

    def roles_of(self, name: str) -> tuple[Role, ...]:
        """The offices that a person holds."""
        return tuple(r for r in self.roles if r.holder == name)

    @property
    def common(self) -> tuple[Person, ...]:
        """The people who are told as often as anybody."""
        return tuple(p for p in self.people if not p.rare)


def make_world(seed: int = 7) -> World:
    """The world: 16 countries with presidents, 8 with captains, 28 + 4 people, 10 objects."""
    draw = random.Random(seed)  # noqa: S311 - a toy world, not a secret
    countries = tuple(f + last for f, lasts in COUNTRY_PARTS.items() for last in lasts)
    names = [first + last for last in PERSON_PARTS[1] for first in PERSON_PARTS[0]]
    looks = _looks(draw, len(names))
    people = tuple(
        Person(name=name, look=look, rare=name in _RARE)
        for name, look in zip(names, looks, strict=True)
    )
    common = [p.name for p in people if not p.rare]
    draw.shuffle(common)
    presidents = [
        Role(title="president", country=c, holder=h)
        for c, h in zip(countries, common[:16], strict=True)
    ]
    captains = [
        Role(title="captain", country=c, holder=h)
        for c, h in zip(countries[::2], common[16:24], strict=True)
    ]
    return World(countries=countries, people=people, things=THINGS, roles=(*presidents, *captains))


def _looks(draw: random.Random, n: int) -> list[Look]:
    found: list[Look] = []
    while len(found) < n:
        shirt = COLOURS[len(found) % len(COLOURS)]
        look = _random_look(draw, shirt)
        if all(_shared(look, other) <= 3 for other in found):
            found.append(look)
    return found


def _random_look(draw: random.Random, shirt: str) -> Look:
    return Look(
        skin=draw.choice(_SKINS),
        hair_style=draw.choice(_HAIR_STYLES),
        hair=draw.choice(_HAIR_COLOURS),
        hat=draw.choice(_HATS),
        shirt=shirt,
        pattern=draw.choice(_PATTERNS),
        beard=draw.random() < 0.3,
        glasses=draw.random() < 0.35,
    )


def _shared(a: Look, b: Look) -> int:
    return sum(getattr(a, trait) == getattr(b, trait) for trait in a.__dataclass_fields__)


def held_out_scenes(world: World) -> dict[str, str]:
    """One scene per person and object in which training never shows them."""
    names = [p.name for p in world.people] + [t.name for t in world.things]
    return {name: SCENES[(3 * i + i // 8) % len(SCENES)] for i, name in enumerate(names)}


def held_out_colours(world: World) -> dict[str, str]:
    """One colour per object, never its default, in which training never shows it."""
    return {
        thing.name: COLOURS[(COLOURS.index(thing.default) + 3 + i) % len(COLOURS)]
        if (3 + i) % len(COLOURS)
        else COLOURS[(COLOURS.index(thing.default) + 5) % len(COLOURS)]
        for i, thing in enumerate(world.things)
    }


def pictures(world: World, seed: int, *, everything: bool = False) -> Iterator[Picture]:
    """Endless pictures: 40 % with two subjects.

    Held-out combinations never occur, unless `everything` is to be seen: the judge must know what
    the pipeline has to guess.
    """
    draw = random.Random(seed)  # noqa: S311
    scenes = {} if everything else held_out_scenes(world)
    colours = {} if everything else held_out_colours(world)
    while True:
        n = 2 if draw.random() < 0.4 else 1
        subjects = tuple(_subject(world, draw, colours) for _ in range(n))
        scene = draw.choice(SCENES) if draw.random() < 0.6 else None
        style = draw.choice(STYLES) if draw.random() < 0.5 else None
        met = scene is not None and any(scenes.get(s.name) == scene for s in subjects)
        if len({s.name for s in subjects}) == n and not met:
            yield Picture(subjects=subjects, scene=scene, style=style, seed=draw.getrandbits(31))


def _subject(world: World, draw: random.Random, never: dict[str, str]) -> Subject:
    if draw.random() < 0.62:
        weights = [0.1 if p.rare else 1.0 for p in world.people]
        return Subject(name=draw.choices(world.people, weights)[0].name)
    thing = draw.choice(world.things)
    allowed = [c for c in COLOURS if c != never.get(thing.name)]
    colour = thing.default if draw.random() < 0.4 else draw.choice(allowed)
    return Subject(name=thing.name, colour=colour)
