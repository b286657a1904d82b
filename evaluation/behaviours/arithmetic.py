"""Sums and differences of two numbers of two digits, and the carry of the ones.

    "23+45=" -> "68"

Counterfactuals: other numbers (`random`), or numbers with the same tens digits and the same ones
digit of the result whose ones carry if the base's do not (`ones_carry`): the sum s of the ones
becomes s - 10 if it is above 9 and s + 10 if not; s = 9 has no such partner and is not drawn.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from evaluation.behaviours.behaviour import Alter, Behaviour
from evaluation.behaviours.causal import CausalModel, Values


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words of the question.

    Attributes:
        prompt: With the fields first and second; the result follows.
        operator: What is asked for.
        digits: Results are padded with zeros to this length, as MIB's labels are to 3.
    """

    prompt: str
    operator: Literal["plus", "minus"] = "plus"
    digits: int = 1


def arithmetic(wording: Wording) -> Behaviour:
    """The behaviour in these words; differences know no carry, and have `random` only."""
    return Behaviour(
        name="arithmetic",
        causal=causal_model(wording),
        variables=("ones_carry",),
        draw=lambda draw: _draw(wording, draw),
        sets=_sets(wording),
        places=_places,
        swapped=tuple(_sets(wording)),
        paired="random",
    )


def causal_model(wording: Wording) -> CausalModel:
    """Digit by digit, as it is done on paper; `ones_carry` is a difference's borrow."""
    sign = 1 if wording.operator == "plus" else -1

    def carry(v: Values) -> int:
        ones = v["first"] % 10 + sign * (v["second"] % 10)
        return int(ones > 9) if sign == 1 else -int(ones < 0)

    def tens_and_more(v: Values) -> int:
        return v["first"] // 10 + sign * (v["second"] // 10) + v["ones_carry"]

    return CausalModel(
        name="arithmetic",
        inputs=("first", "second"),
        mechanisms={
            "prompt": lambda v: wording.prompt.format(**v),
            "ones_carry": carry,
            "ones": lambda v: (v["first"] + sign * v["second"]) % 10,
            "tens": lambda v: tens_and_more(v) % 10,
            "hundreds": lambda v: tens_and_more(v) // 10,
            "answer": lambda v: _told(v, wording.digits),
            "second_at": lambda v: _second_at(wording, v),
        },
    )


def _told(v: Values, digits: int) -> str:
    return str(100 * v["hundreds"] + 10 * v["tens"] + v["ones"]).zfill(digits)


def _draw(wording: Wording, draw: random.Random) -> Values:
    while True:
        first, second = draw.randint(10, 99), draw.randint(10, 99)
        if wording.operator == "minus":
            # A swapped borrow must leave a number that is no less than nothing.
            first, second = max(first, second), min(first, second)
            if first // 10 > second // 10:
                return {"first": first, "second": second}
        elif first % 10 + second % 10 != 9:
            return {"first": first, "second": second}


def _sets(wording: Wording) -> Mapping[str, Alter]:
    def other_numbers(v: Values, draw: random.Random) -> Values:
        while (found := _draw(wording, draw)) == v:
            pass
        return found

    plus: Mapping[str, Alter] = {"random": other_numbers, "ones_carry": flip_carry}
    return plus if wording.operator == "plus" else {"random": other_numbers}


def flip_carry(v: Values, draw: random.Random) -> Values:
    """The same tens digits, the same ones digit of the sum, the other carry."""
    ones = v["first"] % 10 + v["second"] % 10
    aim = ones - 10 if ones > 9 else ones + 10
    first = draw.choice([d for d in range(10) if 0 <= aim - d <= 9])
    return {
        "first": 10 * (v["first"] // 10) + first,
        "second": 10 * (v["second"] // 10) + aim - first,
    }


def _second_at(wording: Wording, v: Values) -> int:
    """Where the second number's last digit stands."""
    before = wording.prompt.split("{second}")[0].format(**v)
    return len(before) + len(str(v["second"])) - 1


def _places(v: Values) -> Mapping[str, int | None]:
    return {"op2_last": v["second_at"], "last": None}
