"""Counting, and the orders that everybody knows."""

import random

from miniature.prose.document import Document

_WORDS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_MONTHS = "January February March April May June July August September October November December"
_LETTERS = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"
ROUNDS = {"number": _WORDS, "day": _DAYS, "month": _MONTHS, "letter": _LETTERS}


def counting(draw: random.Random) -> Document:
    """A stretch of an order, or what follows what."""
    teller = draw.choice((_numbers, _stretch, _next, _next_number))
    lines = [teller(draw) for _ in range(draw.randint(1, 3))]
    return Document(text="\n".join(lines), kind="counting")


def numbers(first: int, last: int, step: int = 1) -> str:
    """From the first to the last, with commas."""
    return ", ".join(str(n) for n in range(first, last + (1 if step > 0 else -1), step))


def _numbers(draw: random.Random) -> str:
    step = draw.choice((1, 1, 1, 2, 5, 10, -1))
    first = draw.randint(0, 60) if step > 0 else draw.randint(12, 99)
    last = first + step * draw.randint(4, 10)
    told = numbers(first, last, step)
    if step == 1 and draw.random() < 0.5:
        return f"Count from {first} to {last}: {told}."
    return f"{told}."


def _stretch(draw: random.Random) -> str:
    order = draw.choice(list(ROUNDS.values())).split()
    first = draw.randrange(len(order) - 3)
    return ", ".join(order[first : first + draw.randint(3, 8)]) + "."


def _next(draw: random.Random) -> str:
    kind = draw.choice(list(ROUNDS))
    order = ROUNDS[kind].split()
    at = draw.randrange(len(order) - 1)
    return draw.choice(
        (
            f"After {order[at]} comes {order[at + 1]}.",
            f"Before {order[at + 1]} comes {order[at]}.",
            f"The {kind} after {order[at]} is {order[at + 1]}.",
        )
    )


def _next_number(draw: random.Random) -> str:
    n = draw.randint(0, 98)
    return draw.choice((f"After {n} comes {n + 1}.", f"Before {n + 1} comes {n}."))
