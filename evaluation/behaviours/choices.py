r"""Multiple choice: the letter of the choice that was stated just before.

    "The box is red. What colour is the box?\nA. blue\nB. red\n...Answer:" -> " B"

The model of MIB points at a choice (`answer_pointer`) and reads its letter (`answer`).
Counterfactuals: the right choice changes places with another one (`answerPosition`), four letters
that the base does not use (`randomLetter`), or both; a circuit is looked for with other letters
(`symbol`).
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.behaviours.behaviour import Alter, Behaviour
from evaluation.behaviours.causal import CausalModel, Values

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BOTH = "answerPosition_randomLetter"
POINTED = ("answer_pointer", "answer")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words of the question.

    Attributes:
        question: With the fields thing and colour; the choices follow on their own lines.
        end: The last line, behind which the letter stands.
        looks: Things with their colours, which are true or merely told.
        colours: From which wrong choices are drawn.
        letters: Of a base, in their order.
        space: What stands between the prompt and the letter.
    """

    question: str
    end: str
    looks: tuple[tuple[str, str], ...]
    colours: tuple[str, ...]
    letters: str = "ABCD"
    space: str = " "


def choices(wording: Wording) -> Behaviour:
    """The behaviour in these words."""
    return Behaviour(
        name="mcqa",
        causal=CausalModel(
            name="4_answer_MCQA",
            inputs=("thing", "colour", "choices", "letters"),
            mechanisms={
                "prompt": lambda v: _prompt(wording, v),
                "answer_pointer": lambda v: v["choices"].index(v["colour"]),
                "answer": lambda v: wording.space + v["letters"][v["answer_pointer"]],
            },
        ),
        variables=POINTED,
        draw=lambda draw: _draw(wording, draw),
        sets=SETS,
        places=places,
        swapped=("answerPosition", "randomLetter", BOTH),
        paired="symbol",
    )


def _draw(wording: Wording, draw: random.Random) -> Values:
    thing, colour = draw.choice(wording.looks)
    others = [c for c in wording.colours if c != colour]
    n = len(wording.letters)
    shown = draw.sample([colour, *draw.sample(others, n - 1)], n)
    return {
        "thing": thing,
        "colour": colour,
        "choices": tuple(shown),
        "letters": tuple(wording.letters),
    }


def _prompt(wording: Wording, v: Values) -> str:
    lines = [f"{x}. {c}" for x, c in zip(v["letters"], v["choices"], strict=True)]
    return "\n".join([wording.question.format(**v), *lines, wording.end])


def other_position(v: Values, draw: random.Random) -> Values:
    """The right choice changes places with another one."""
    shown = list(v["choices"])
    here = shown.index(v["colour"])
    there = draw.choice([i for i in range(len(shown)) if i != here])
    shown[here], shown[there] = shown[there], shown[here]
    return {**v, "choices": tuple(shown)}


def other_letters(v: Values, draw: random.Random) -> Values:
    """As many letters, none of them used before."""
    free = [x for x in ALPHABET if x not in v["letters"]]
    return {**v, "letters": tuple(draw.sample(free, len(v["letters"])))}


SETS: Mapping[str, Alter] = {
    "answerPosition": other_position,
    "randomLetter": other_letters,
    BOTH: lambda v, draw: other_letters(other_position(v, draw), draw),
    "symbol": other_letters,
}


def places(v: Values) -> Mapping[str, int | None]:
    """The right letter in front of its choice, what follows it, and the last token."""
    letter = v["answer"].strip()
    at = symbol_at(v["prompt"], letter)
    return {"correct_symbol": at, "correct_symbol_period": at + 1, "last_token": None}


def symbol_at(prompt: str, letter: str) -> int:
    """Where the letter begins a line, or else where it first stands alone.

    MIB's rule is the latter; there the article "A" of a question would be taken for a choice.
    """
    found = re.search(rf"(?m)^{letter}\b(?! )", prompt) or re.search(rf"\b{letter}\b", prompt)
    if found is None:
        raise ValueError(f"no choice is called {letter}")
    return found.start()
