"""A question about a picture, and the words that say the same as the picture."""

import hashlib
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

Split = Literal["train", "held-out"]
HELD_OUT = 10
"""One in so many contents is never shown in training."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question in both modalities: `picture` and `description` show and tell the same.

    `labels` are the words an answer can begin with: what a restricted choice is made among. They
    are single tokens; a sum's answer is several digits, of which the first is a label.
    """

    task: str
    split: Split
    picture: Image.Image
    description: str
    question: str
    answer: str
    labels: tuple[str, ...]

    @property
    def in_picture(self) -> list[dict[str, Any]]:
        """The question as a conversation about the picture."""
        parts = [{"type": "image"}, {"type": "text", "text": self.question}]
        return [{"role": "user", "content": parts}]

    @property
    def in_words(self) -> list[dict[str, Any]]:
        """The question as a conversation with the description in the picture's place."""
        return [{"role": "user", "content": f"{self.description} {self.question}"}]


@dataclass(frozen=True, kw_only=True)
class Task:
    """How items of one kind are made.

    `think` draws a content: what is shown and what is asked, as plain data. `show` makes an item
    of it; where things stand, their sizes and the light vary with the given randomness, and the
    picture's size is one of `sizes` (width, height in pixels).
    """

    name: str
    labels: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    think: Callable[[random.Random], Hashable]
    show: Callable[[Any, random.Random, Split], Item]


def is_held_out(content: Hashable) -> bool:
    """Whether training never shows that content; the same in every process."""
    return hashlib.sha256(repr(content).encode()).digest()[0] % HELD_OUT == 0


def items(task: Task, split: Split, seed: int) -> Iterator[Item]:
    """Endless items of a task; contents of the two splits never meet."""
    draw = random.Random(f"{task.name} {split} {seed}")  # noqa: S311 - pictures, not secrets
    while True:
        content = task.think(draw)
        if is_held_out(content) == (split == "held-out"):
            yield task.show(content, draw, split)
