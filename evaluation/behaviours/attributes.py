"""What an entity's attribute is: facts in the manner of RAVEL.

    "The capital of Arda is" -> " Mirabel"

Every attribute of the table is a variable. Counterfactuals: another entity, asked for any attribute
(`attribute`), or named without a question (`wikipedia`), where no answer is right. Swapping a
variable brings the other entity's value if the base asks for it, and changes nothing if not.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from evaluation.behaviours.behaviour import Alter, Behaviour, Row
from evaluation.behaviours.causal import CausalModel, Values
from evaluation.behaviours.errors import OddTable, UnknownSet, UnknownVariable
from evaluation.behaviours.swaps import SwapText


@dataclass(frozen=True, kw_only=True)
class Wording:
    """Entities and how they are asked about.

    Attributes:
        prompts: By attribute the forms of its question, with the field entity.
        neutral: Forms that name an entity and ask nothing.
        table: By entity the value of each attribute.
    """

    prompts: Mapping[str, tuple[str, ...]]
    neutral: tuple[str, ...]
    table: Mapping[str, Mapping[str, str]]


def attributes(wording: Wording) -> Behaviour:
    """The behaviour in these words.

    Raises:
        OddTable: An entity that nothing can be asked of, or an attribute that is always the same.
    """
    _check(wording)
    return Behaviour(
        name="ravel",
        causal=causal_model(tuple(wording.prompts), wording.table),
        variables=tuple(wording.prompts),
        draw=lambda draw: _draw(wording, draw),
        sets=_sets(wording),
        places=places,
        swapped=("attribute", "wikipedia"),
        paired="entity",
    )


def of_table(names: Sequence[str], table: Mapping[str, Mapping[str, str]]) -> Behaviour:
    """The behaviour of rows that exist already: nothing can be drawn for it."""

    def none_drawn(*_: object) -> Values:
        raise UnknownSet("any", "A table of rows", ())

    return Behaviour(
        name="ravel",
        causal=causal_model(names, table),
        variables=tuple(names),
        draw=none_drawn,
        sets={},
        places=places,
        swapped=(),
        paired="",
    )


def causal_model(names: Sequence[str], table: Mapping[str, Mapping[str, str]]) -> CausalModel:
    """The values of an entity, and the one among them that is asked for."""

    def value_of(name: str) -> Callable[[Values], str]:
        return lambda v: table[v["entity"]].get(name, "")

    return CausalModel(
        name="RAVEL",
        inputs=("template", "entity", "queried"),
        mechanisms={
            "prompt": lambda v: v["template"].format(entity=v["entity"]),
            **{name: value_of(name) for name in names},
            "answer": _answer,
        },
    )


def _answer(v: Values) -> str:
    value = v[v["queried"]] if v["queried"] else ""
    return f" {value}" if value else ""


def _check(wording: Wording) -> None:
    for entity, told in wording.table.items():
        if not any(told.get(name) for name in wording.prompts):
            raise OddTable(f"{entity} has none of {', '.join(wording.prompts)}")
    for name in wording.prompts:
        values = {told[name] for told in wording.table.values() if told.get(name)}
        if len(values) < 2:
            raise OddTable(f"{name} has {len(values)} values, and no other can be asked for")
    odd = [form for forms in wording.prompts.values() for form in forms if "{entity}" not in form]
    if odd or any("{entity}" not in form for form in wording.neutral):
        raise OddTable("a form does not name {entity}")


def swaps_of(
    behaviour: Behaviour, variable: str, n: int, seed: int = 0, sets: Sequence[str] | None = None
) -> list[SwapText]:
    """Interchanges for one variable: per other attribute, half as many rows that ask for it.

    Raises:
        UnknownVariable: The table has no such attribute.
    """
    if variable not in behaviour.variables:
        raise UnknownVariable(variable, behaviour.variables)
    wanted = _shares(n, behaviour.variables, variable)
    kept: list[SwapText] = []
    for row in _endless(behaviour, seed, sets or behaviour.swapped):
        if wanted[asked := row.base["queried"]] > 0:
            wanted[asked] -= 1
            kept.append(behaviour.swap(row))
        if len(kept) == n:
            return kept
    return kept


def _shares(n: int, names: Sequence[str], variable: str) -> dict[str, int]:
    """Of n rows, how many ask for each attribute: the variable for twice as many as any other."""
    others = [name for name in names if name != variable]
    each = n // (2 + len(others))
    return dict.fromkeys(others, each) | {variable: n - each * len(others)}


def _endless(behaviour: Behaviour, seed: int, sets: Sequence[str]) -> Iterator[Row]:
    draw = random.Random(seed)  # noqa: S311 - prompts, not secrets
    while True:
        yield from behaviour.rows(200, draw.getrandbits(32), sets)


def _draw(wording: Wording, draw: random.Random) -> Values:
    entity = draw.choice(sorted(wording.table))
    return _asked(wording, entity, draw)


def _asked(wording: Wording, entity: str, draw: random.Random) -> Values:
    queried = draw.choice([n for n in wording.prompts if wording.table[entity].get(n)])
    template = draw.choice(wording.prompts[queried])
    return {"template": template, "entity": entity, "queried": queried}


def _sets(wording: Wording) -> Mapping[str, Alter]:
    def other(v: Values, draw: random.Random) -> str:
        return draw.choice([e for e in sorted(wording.table) if e != v["entity"]])

    def unlike(v: Values, draw: random.Random) -> str:
        asked, own = v["queried"], wording.table[v["entity"]]
        having = [e for e, told in sorted(wording.table.items()) if told.get(asked)]
        return draw.choice([e for e in having if wording.table[e][asked] != own[asked]])

    return {
        "attribute": lambda v, draw: _asked(wording, other(v, draw), draw),
        "wikipedia": lambda v, draw: {
            "template": draw.choice(wording.neutral),
            "entity": other(v, draw),
            "queried": "",
        },
        "entity": lambda v, draw: {**v, "entity": unlike(v, draw)},
    }


def places(v: Values) -> Mapping[str, int | None]:
    """The last character of the entity's name, and the last token."""
    end = v["prompt"].rindex(v["entity"]) + len(v["entity"]) - 1
    return {"entity_last_token": end, "last_token": None}
