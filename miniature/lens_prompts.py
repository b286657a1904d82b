"""Prompts to look at through the lens, with what must be in their pictures.

`python -m miniature.lens_prompts FILE` writes them as the file that evaluations read. They are made
from the world alone; none shows a combination that training held out.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniature.telling import ROLE_PHRASES, SCENE_PHRASES, article
from miniature.world import (
    COLOURS,
    SCENES,
    Role,
    Thing,
    World,
    held_out_colours,
    held_out_scenes,
    make_world,
)

Told = dict[str, Any]
NEW, OLD = "new fact", "old fact"
_SCENES_OF_AN_EDIT = 4


def prompts(world: World) -> Told:
    """Things, people, offices and pairs: 74 prompts."""
    cases = [
        *(_plain(thing) for thing in world.things),
        *(_coloured(world, i, thing) for i, thing in enumerate(world.things)),
        *(_in_a_scene(world, i, thing) for i, thing in enumerate(world.things)),
        *_people(world),
        *(_office(i, role) for i, role in enumerate(_some_presidents(world))),
        *(_two_things(world, i) for i in range(8)),
        *(_person_and_thing(world, i) for i in range(6)),
        *(_with_sides(world, i) for i in range(4)),
    ]
    return {"format": 1, "cases": cases}


def _plain(thing: Thing) -> Told:
    text = f"{article(thing.name)} {thing.name}"
    default = _ask("default colour", f"{thing.default} {thing.name}")
    return _case(text, "object", [_ask("object", thing.name), default])


def _coloured(world: World, number: int, thing: Thing) -> Told:
    colour = _colour(world, thing, number)
    return _case(_told(colour, thing), "coloured object", _about(colour, thing))


def _in_a_scene(world: World, number: int, thing: Thing) -> Told:
    allowed = [s for s in SCENES if s != held_out_scenes(world)[thing.name]]
    scene = allowed[number % len(allowed)]
    text = f"{article(thing.name)} {thing.name} {SCENE_PHRASES[scene][0]}"
    questions = [_ask("object", thing.name), _ask("scene", scene)]
    return _case(text, "object in a scene", questions)


def _people(world: World) -> list[Told]:
    """Every second of the common people, and all rare ones."""
    rare = [p for p in world.people if p.rare]
    return [
        _case(p.name.title(), "person", _who(p.name), frequency="rare" if p.rare else "common")
        for p in (*world.common[::2], *rare)
    ]


def _some_presidents(world: World) -> list[Role]:
    return [r for r in world.roles if r.title == "president"][::2]


def _office(number: int, role: Role) -> Told:
    ways = ROLE_PHRASES[role.title]
    text = ways[number % len(ways)].format(c=role.country.title())
    return _case(text, "president", _who(role.holder))


def _two_things(world: World, number: int) -> Told:
    """Two objects in two colours, neither of which is the other's default."""
    first, second, colours = _pair(world, number, apart=3)
    text = f"{_told(colours[0], first)} and {_told(colours[1], second)}"
    questions = [*_about(colours[0], first, "either"), *_about(colours[1], second, "either")]
    return _case(text, "two coloured objects", questions, group="compound")


def _person_and_thing(world: World, number: int) -> Told:
    person = world.common[(3 * number + 1) % len(world.common)]
    thing = world.things[(number + 4) % len(world.things)]
    colour = _colour(world, thing, number + 3)
    text = f"{person.name.title()} with {_told(colour, thing)}"
    questions = [*_who(person.name, "either"), *_about(colour, thing, "either")]
    return _case(text, "person and coloured object", questions, group="compound")


def _with_sides(world: World, number: int) -> Told:
    first, second, colours = _pair(world, number + 1, apart=7)
    text = f"{_told(colours[0], first)} on the left and {_told(colours[1], second)} on the right"
    questions = [*_about(colours[0], first, "left"), *_about(colours[1], second, "right")]
    return _case(text, "two coloured objects, sides told", questions, group="compound")


def _pair(world: World, number: int, *, apart: int) -> tuple[Thing, Thing, tuple[str, str]]:
    first = world.things[number % len(world.things)]
    second = world.things[(number + apart) % len(world.things)]
    one = _colour(world, first, number, other=second.default)
    return first, second, (one, _colour(world, second, number + 1, other=first.default, not_=one))


def _colour(world: World, thing: Thing, number: int, *, other: str = "", not_: str = "") -> str:
    """A colour that training shows the object in, not its default."""
    never = {thing.default, held_out_colours(world)[thing.name], other, not_}
    allowed = [c for c in COLOURS if c not in never]
    return allowed[(3 * number) % len(allowed)]


def _told(colour: str, thing: Thing) -> str:
    return f"{article(colour)} {colour} {thing.name}"


def _about(colour: str, thing: Thing, place: str = "whole") -> list[Told]:
    return [_ask("object", thing.name, place), _ask("colour", f"{colour} {thing.name}", place)]


def _who(name: str, place: str = "whole") -> list[Told]:
    return [_ask("human", "human", place), _ask("identity", name, place)]


def _ask(question: str, right: str, place: str = "whole") -> Told:
    return {"question": question, "right": right, "place": place}


def _case(
    prompt: str,
    kind: str,
    questions: list[Told],
    *,
    group: str = "simple",
    frequency: str | None = None,
) -> Told:
    told = {"prompt": prompt, "kind": kind, "group": group, "questions": questions}
    return told if frequency is None else {**told, "frequency": frequency}


def edit_prompts(world: World, prompt: str, target: str, others: Sequence[str] = ()) -> Told | None:
    """A fact's own prompts, asked for the new and the old answer; None if it is not of this world.

    Offices are told in every phrasing, and everything in a few scenes too. `others` are further
    phrasings of the same.
    """
    answer = _answer(world, target)
    known = _known(world, prompt)
    if answer is None or known is None:
        return None
    before, phrasings = known
    questions = [_ask(NEW, answer), _ask(OLD, before)]
    plain = list(dict.fromkeys([prompt, *others, *phrasings]))
    never = {held_out_scenes(world)[a.split()[-1]] for a in (answer, before)}
    allowed = [SCENE_PHRASES[s][0] for s in SCENES if s not in never]
    scenes = [f"{prompt} {told}" for told in allowed[:_SCENES_OF_AN_EDIT]]
    kinds = [*((p, "phrasing") for p in plain), *((p, "in a scene") for p in scenes)]
    return {"format": 1, "cases": [_case(p, kind, questions) for p, kind in kinds]}


def _answer(world: World, text: str) -> str | None:
    """What the judge calls it: a name, or "colour thing"."""
    words = text.strip().lower().removeprefix("an ").removeprefix("a ").split()
    if len(words) == 1 and world.person(words[0]):
        return words[0]
    thing = world.thing(words[-1]) if words else None
    if thing is None or len(words) > 2 or (len(words) == 2 and words[0] not in COLOURS):
        return None
    return f"{words[0] if len(words) == 2 else thing.default} {thing.name}"


def _known(world: World, prompt: str) -> tuple[str, list[str]] | None:
    """What a prompt shows, and all ways to say it."""
    plain = prompt.strip().lower()
    for role in world.roles:
        told = [way.format(c=role.country.title()) for way in ROLE_PHRASES[role.title]]
        if plain in (text.lower() for text in told):
            return role.holder, told
    before = _answer(world, prompt)
    return None if before is None else (before, [])


def main(file: str) -> None:
    """Write the prompts of the default world."""
    text = json.dumps(prompts(make_world()), indent=1, sort_keys=True)
    Path(file).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
