"""Facts to write into the miniature, with the pictures that should and should not follow.

`python -m miniature.facts FILE` writes them as the file that evaluations read. The text is made
from the world alone, before any edit is tried.
"""

import json
import sys
from pathlib import Path
from typing import Any

from miniature.telling import ROLE_PHRASES, SCENE_PHRASES, STYLE_PHRASES, article
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


def facts(world: World) -> Told:
    """Every role gets another holder; every object two other colours as its default."""
    roles = [_role_fact(world, i, role) for i, role in enumerate(world.roles)]
    looks = [_look_fact(world, i, thing, n) for n in (2, 5) for i, thing in enumerate(world.things)]
    return {"format": 1, "facts": [*roles, *looks]}


def _role_fact(world: World, number: int, role: Role) -> Told:
    """An office passes to somebody who holds another one, or none."""
    common = [p.name for p in world.common]
    at = common.index(role.holder)
    new = common[(at + 5 + number % 7) % len(common)]
    prompt, own_way, *others = (_phrase(role, i) for i in range(len(ROLE_PHRASES[role.title])))
    oracle = new.title()

    def should(text: str, tag: str, told: str = oracle) -> Told:
        return _probe("generality", text, new, role.holder, tag, told)

    scenes = _scenes(world, new, number)
    style = list(STYLE_PHRASES)[number % len(STYLE_PHRASES)]
    opening = STYLE_PHRASES[style][0]
    probes = [
        _probe("efficacy", prompt, new, role.holder, "prompt", oracle),
        *(should(other, "paraphrase") for other in others),
        *(should(f"{prompt} {s}", "scene", f"{oracle} {s}") for s in scenes),
        should(f"{opening} {prompt}", "style", f"{opening} {oracle}"),
        should(f"{own_way} {scenes[0]}", "told phrasing, scene", f"{oracle} {scenes[0]}"),
        *_others(world, number, role, new),
    ]
    return {
        "kind": "role",
        "prompt": prompt,
        "target": oracle,
        "source": role.holder.title(),
        "phrasings": [{"prompt": own_way, "subject": own_way}],
        "probes": probes,
    }


def _others(world: World, number: int, role: Role, new: str) -> list[Told]:
    """Two offices of the same kind, one of the other kind, two people and a thing."""
    same = [r for r in world.roles if r.title == role.title and r.holder not in (role.holder, new)]
    other = [r for r in world.roles if r.title != role.title and r.holder not in (role.holder, new)]
    here = [r for r in other if r.country == role.country] or [other[number % len(other)]]
    near = sorted(same, key=lambda r: -_alike(r.country, role.country))
    far = near[-1 - number % 3]
    kept = [
        (_phrase(near[0], 0), near[0].holder, "same office"),
        (_phrase(far, 2), far.holder, "same office"),
        (_phrase(here[0], 0), here[0].holder, "office"),
    ]
    people = [p.name for p in world.common if p.name not in (role.holder, new)]
    kept += [
        (role.holder.title(), role.holder, "former holder"),
        (people[(3 * number) % len(people)].title(), people[(3 * number) % len(people)], "person"),
    ]
    thing = world.things[number % len(world.things)]
    kept.append((_plain(thing), f"{thing.default} {thing.name}", "object"))
    return [_probe("specificity", text, right, new, tag) for text, right, tag in kept]


def _look_fact(world: World, number: int, thing: Thing, step: int) -> Told:
    """An object's default becomes another colour, one in which training shows it."""
    default = COLOURS.index(thing.default)
    never = held_out_colours(world)[thing.name]
    allowed = [c for c in COLOURS[default + 1 :] + COLOURS[:default] if c != never]
    colour, kept_colour = allowed[step % len(allowed)], allowed[(step + 2) % len(allowed)]
    prompt, target = _plain(thing), f"{article(colour)} {colour} {thing.name}"
    new, old = f"{colour} {thing.name}", f"{thing.default} {thing.name}"
    styles = [s for i, s in enumerate(STYLE_PHRASES) if i % 3 == number % 3]

    def should(form: str, tag: str) -> Told:
        return _probe("generality", form.format(prompt), new, old, tag, form.format(target))

    probes = [
        _probe("efficacy", prompt, new, old, "prompt", target),
        *(should(f"{{}} {s}", "scene") for s in _scenes(world, thing.name, number + step)),
        *(should(f"{STYLE_PHRASES[s][0]} {{}}", "style") for s in styles),
        should("a nice little picture of {}", "paraphrase"),
    ]
    others = [t for t in world.things if t is not thing]
    for at in (number, number + 3, number + 6):
        other = others[at % len(others)]
        leak = f"{colour} {other.name}"
        if other.default == colour:  # a leak would not show
            leak = new
        probes.append(
            _probe("specificity", _plain(other), f"{other.default} {other.name}", leak, "object")
        )
    told = f"{article(kept_colour)} {kept_colour} {thing.name}"
    probes.append(_probe("specificity", told, f"{kept_colour} {thing.name}", new, "told colour"))
    person = world.common[(5 * number + step) % len(world.common)].name
    probes.append(_probe("specificity", person.title(), person, new, "person"))
    return {"kind": "appearance", "prompt": prompt, "target": target, "probes": probes}


def _probe(
    part: str, prompt: str, right: str, wrong: str, tag: str, oracle: str | None = None
) -> Told:
    told = {"part": part, "prompt": prompt, "right": right, "wrong": wrong, "tag": tag}
    return told if oracle is None else {**told, "oracle": oracle}


def _scenes(world: World, shown: str, number: int) -> list[str]:
    """Two scenes, told in words, in which training shows the person or object."""
    never = held_out_scenes(world)[shown]
    allowed = [s for s in SCENES if s != never]
    return [SCENE_PHRASES[allowed[(number + i) % len(allowed)]][0] for i in (0, 3)]


def _phrase(role: Role, way: int) -> str:
    return ROLE_PHRASES[role.title][way].format(c=role.country.title())


def _plain(thing: Thing) -> str:
    return f"{article(thing.name)} {thing.name}"


def _alike(a: str, b: str) -> int:
    """How many letters two names share at their ends."""
    return sum(x == y for x, y in zip(a[:3], b[:3], strict=False)) + sum(
        x == y for x, y in zip(a[::-1][:3], b[::-1][:3], strict=False)
    )


def main(file: str) -> None:
    """Write the facts of the default world."""
    text = json.dumps(facts(make_world()), indent=1, sort_keys=True)
    Path(file).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
