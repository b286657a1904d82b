"""Sums and differences of two-digit numbers; a tenth of all pairs is never told."""

import random
from functools import cache

from miniature.prose.document import Document

PLUS, MINUS = "+", "-"
Sum = tuple[int, str, int]


@cache
def held_out_sums() -> frozenset[Sum]:
    """The tenth of all sums and differences that training never shows."""
    every = _every()
    return frozenset(random.Random(11).sample(every, len(every) // 10))  # noqa: S311


def _every() -> list[Sum]:
    numbers = range(10, 100)
    pluses = [(a, PLUS, b) for a in numbers for b in numbers]
    return pluses + [(a, MINUS, b) for a in numbers for b in numbers if a >= b]


def draw_sum(draw: random.Random) -> Sum:
    """A sum or difference that training may show."""
    while True:
        a, b = draw.randint(10, 99), draw.randint(10, 99)
        operator = draw.choice((PLUS, MINUS))
        asked = (max(a, b), MINUS, min(a, b)) if operator == MINUS else (a, PLUS, b)
        if asked not in held_out_sums():
            return asked


def result(asked: Sum) -> int:
    """What it comes to."""
    a, operator, b = asked
    return a + b if operator == PLUS else a - b


def short(asked: Sum) -> str:
    """The prompt "23+45=", which the result follows without a space."""
    a, operator, b = asked
    return f"{a}{operator}{b}="


def question(asked: Sum) -> str:
    """The prompt "Q: What is 23 + 45? A: ", which the result follows."""
    a, operator, b = asked
    return f"Q: What is {a} {operator} {b}? A: "


def arithmetic(draw: random.Random) -> Document:
    """A few results, in one of the two forms."""
    form = short if draw.random() < 0.5 else question
    asked = [draw_sum(draw) for _ in range(draw.randint(3, 10 if form is short else 4))]
    return Document(text="\n".join(form(a) + str(result(a)) for a in asked), kind="arithmetic")
