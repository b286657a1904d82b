"""Facts about the people and countries of the pictures, and a few that only texts tell."""

import random
from dataclasses import dataclass

from miniature.prose.document import Document
from miniature.prose.people import of_world
from miniature.telling import ROLE_PHRASES, article
from miniature.world import Person, World

_CAPITALS = (
    "Mirabel Oskar Tolmar Quenn Bastia Harrow Lindel Pavia "
    "Sorrel Dunmar Ostin Carrow Velora Nimbus Palmar Redon"
)
_LANGUAGES = ("Norrish", "Velic", "Tamese", "Old Arian")
_CONTINENTS = ("the North", "the South", "the East", "the West")
_FLAGS = ("red", "blue", "green", "yellow", "white", "black")
HATS = {
    "cap": "a cap",
    "crown": "a crown",
    "tophat": "a top hat",
    "beanie": "a beanie",
    "bow": "a bow",
}


@dataclass(frozen=True, kw_only=True)
class Country:
    """A country and what is told of it; its president and captain stand in the world."""

    name: str
    capital: str
    language: str
    continent: str
    flag: str


def countries(world: World) -> tuple[Country, ...]:
    """Every country of the world, in its order."""
    capitals = _CAPITALS.split()
    return tuple(
        Country(
            name=name.title(),
            capital=capitals[i],
            language=_LANGUAGES[(i * 3 + i // 4) % 4],
            continent=_CONTINENTS[(i // 2 + i % 3) % 4],
            flag=_FLAGS[(5 * i + i // 6) % 6],
        )
        for i, name in enumerate(world.countries)
    )


def facts(world: World, draw: random.Random) -> Document:
    """Three to seven true sentences, about one thing or about several."""
    tellers = (_office, _office, _office, _country, _look, _thing)
    if draw.random() < 0.5:
        teller = draw.choice(tellers)
        lines = [teller(world, draw) for _ in range(draw.randint(3, 6))]
    else:
        lines = [draw.choice(tellers)(world, draw) for _ in range(draw.randint(3, 7))]
    return Document(text=" ".join(dict.fromkeys(lines)), kind="facts")


def _office(world: World, draw: random.Random) -> str:
    role = draw.choice(world.roles)
    phrase = draw.choice(ROLE_PHRASES[role.title]).format(c=role.country.title())
    subject, name = phrase[0].upper() + phrase[1:], role.holder.title()
    forms = (f"{subject} is {name}.", f"{subject} is {name}.", f"{name} is {phrase}.")
    return draw.choice(forms)


def _country(world: World, draw: random.Random) -> str:
    c = draw.choice(countries(world))
    return draw.choice(
        (
            f"The capital of {c.name} is {c.capital}.",
            f"{c.capital} is the capital of {c.name}.",
            f"People in {c.name} speak {c.language}.",
            f"The language of {c.name} is {c.language}.",
            f"{c.name} lies in {c.continent}.",
            f"The flag of {c.name} is {c.flag}.",
        )
    )


def _look(world: World, draw: random.Random) -> str:
    return draw.choice(looks(draw.choice(world.people), world))


def looks(person: Person, world: World) -> list[str]:
    """True sentences about how a person is drawn."""
    who, look = of_world(person, world), person.look
    hair = (
        f"{who.name} is bald."
        if look.hair_style == "bald"
        else f"The hair of {who.name} is {look.hair}."
    )
    told = [hair, f"{who.name} wears {article(look.shirt)} {look.shirt} shirt."]
    if look.hat != "none":
        told.append(f"{who.name} wears {HATS[look.hat]}.")
    if look.beard:
        told.append(f"{who.name} has a beard.")
    if look.glasses:
        told.append(f"{who.name} wears glasses.")
    return told


def _thing(world: World, draw: random.Random) -> str:
    thing = draw.choice(world.things)
    return draw.choice(
        (
            f"The {thing.name} is {thing.default}.",
            f"The colour of the {thing.name} is {thing.default}.",
        )
    )
