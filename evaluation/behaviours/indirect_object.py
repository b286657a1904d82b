"""Who was given it: sentences that end in the name of the one of two people who did not act.

    "When Ann and Ben went to the shop, Ann gave a drink to" -> " Ben"

The subject is named first in every base. Counterfactuals: the two first mentions change places
(`s1_io_flip`), the second mention of the subject becomes the indirect object (`s2_io_flip`), both
(`s1_ioi_flip_s2_ioi_flip`), or three new names (`abc`), which leave no right answer.

The model of MIB is linear: the logit difference of the two names is a bias, plus one coefficient
times the sign of the token, plus another times the sign of its place.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.behaviours.behaviour import Alter, Behaviour
from evaluation.behaviours.causal import CausalModel, Values

SETS_SIGNS: Mapping[str, tuple[int, int]] = {
    "same": (1, 1),
    "s1_io_flip": (1, -1),
    "s2_io_flip": (-1, -1),
    "s1_ioi_flip_s2_ioi_flip": (-1, 1),
}
"""By set, the signs of (token, place) when a model's whole state is taken from it."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words of the sentences.

    Attributes:
        templates: With the fields a and b (the first mentions), s (the second mention of one of
            them), place and object; the indirect object's name follows.
        names: Each one token behind a space, or rows fall out.
    """

    templates: tuple[str, ...]
    names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]


def indirect_object(wording: Wording) -> Behaviour:
    """The behaviour in these words."""
    return Behaviour(
        name="ioi",
        causal=CausalModel(
            name="ioi",
            inputs=("template", "place", "object", "a", "b", "c"),
            mechanisms={
                "prompt": _prompt,
                "output_position": _position,
                "output_token": _token,
                "answer": lambda v: "" if v["output_token"] is None else f" {v['output_token']}",
                "other": lambda v: f" {v['c']}",
            },
        ),
        variables=("output_token", "output_position"),
        draw=lambda draw: _draw(wording, draw),
        sets=_sets(wording),
        places=_places,
        swapped=("s1_io_flip", "s2_io_flip", "s1_ioi_flip_s2_ioi_flip"),
        paired="s2_io_flip",
        distractor="other",
        signed=("output_token", "output_position"),
    )


def _draw(wording: Wording, draw: random.Random) -> Values:
    subject, other = draw.sample(wording.names, 2)
    return {
        "template": draw.choice(wording.templates),
        "place": draw.choice(wording.places),
        "object": draw.choice(wording.objects),
        "a": subject,
        "b": other,
        "c": subject,
    }


def _sets(wording: Wording) -> Mapping[str, Alter]:
    def three_new(v: Values, draw: random.Random) -> Values:
        a, b, c = draw.sample([n for n in wording.names if n not in {v["a"], v["b"]}], 3)
        return {**v, "a": a, "b": b, "c": c}

    return {
        "s1_io_flip": lambda v, _: {**v, "a": v["b"], "b": v["a"]},
        "s2_io_flip": lambda v, _: {**v, "c": _other(v)},
        "s1_ioi_flip_s2_ioi_flip": lambda v, _: {**v, "a": v["b"], "b": v["a"], "c": _other(v)},
        "abc": three_new,
    }


def _other(v: Values) -> str:
    return v["b"] if v["c"] == v["a"] else v["a"]


def _prompt(v: Values) -> str:
    told = {"a": v["a"], "b": v["b"], "s": v["c"], "place": v["place"], "object": v["object"]}
    return v["template"].format(**told)


def _position(v: Values) -> int | None:
    """Which of the two first mentions is the answer; None where a third person acts."""
    return {v["b"]: 0, v["a"]: 1}.get(v["c"])


def _token(v: Values) -> str | None:
    at = v["output_position"]
    return None if at is None else (v["a"], v["b"])[at]


def _places(v: Values) -> Mapping[str, int | None]:
    """The second mention of the subject, counted from the end, and the last token."""
    return {"s2": v["prompt"].rindex(v["c"]), "last_token": None}
