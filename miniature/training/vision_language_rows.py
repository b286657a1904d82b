"""The items as rows of numbers: pixels, token ids, where an answer stands and what it is.

Rows are told by many processes and kept by task and picture size, so that a batch holds pictures
of one grid. A row is padded on the right: with causal attention, padding changes nothing before it.
"""

import multiprocessing
import random
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from miniature.sight.item import Item, items
from miniature.sight.processor import IMAGE, READ, START, STOP, TOKEN_SIDE, VISION_END, VISION_START
from miniature.sight.tasks import TASKS

Size = tuple[int, int]
ROW, ANSWER = 64, 24
"""Tokens of a row, and of an answer with its end."""
READABLE = frozenset({"sum", "colour order"})
READ_SHARE, READ_WEIGHT = 0.15, 0.3
"""Of the pictures of readable tasks, how many are to be read aloud, and how much that counts."""
CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one task and one picture size.

    Shapes: ids (n, ROW); columns, targets, weights (n, ANSWER); pixels uint8 (n, height, width, 3)
    where `size` is (width, height), or None for text. A target is what the token at its column is
    followed by; where an answer is over its weight is 0. `length` is the longest row's.
    """

    task: str
    size: Size | None
    length: int
    ids: Tensor
    columns: Tensor
    targets: Tensor
    weights: Tensor
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: str) -> "Rows":
        """The same on a device."""
        return replace(
            self,
            ids=self.ids.to(device),
            columns=self.columns.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
            pixels=None if self.pixels is None else self.pixels.to(device),
        )


def visual_tokens(size: Size) -> int:
    """How many tokens a picture of (width, height) becomes."""
    return (size[0] // TOKEN_SIDE) * (size[1] // TOKEN_SIDE)


def told(content: str, answer: str, *, size: Size | None = None) -> tuple[str, str]:
    """A conversation of one question in the chat template, and its answer with the end."""
    seen = "" if size is None else VISION_START + IMAGE * visual_tokens(size) + VISION_END
    return f"{START}user\n{seen}{content}{STOP}\n{START}assistant\n", f"{answer}{STOP}"


def text_content(item: Item) -> str:
    """The question with the description in the picture's place."""
    return f"{item.description} {item.question}"


def spelled(prompt: str, answer: str, tokenizer: Any, weight: float = 1.0) -> tuple[Any, ...]:
    """ids, columns, targets, weights of one row.

    Raises:
        ValueError: The row or the answer is longer than rows are.
    """
    first, then = tokenizer(prompt).input_ids, tokenizer(answer).input_ids
    if len(first) + len(then) > ROW or len(then) > ANSWER:
        raise ValueError(f"too long: {prompt}{answer}")
    ids = np.full(ROW, tokenizer.pad_token_id, np.int16)
    ids[: len(first) + len(then)] = first + then
    columns = np.minimum(np.arange(ANSWER) + len(first) - 1, ROW - 1).astype(np.int16)
    targets, weights = np.zeros(ANSWER, np.int16), np.zeros(ANSWER, np.float32)
    targets[: len(then)], weights[: len(then)] = then, weight
    return ids, columns, targets, weights


Kind = tuple[str, Size | None]
Arrays = dict[Kind, dict[str, np.ndarray]]
"""By task and picture size; arrays, since tensors would travel between processes as open files."""


def rows_of(many: Iterable[Item], tokenizer: Any) -> list[Rows]:
    """Every item twice: by picture size, and in words."""
    return _joined([_arrays(many, tokenizer, None)])


def drawn_rows(
    counts: dict[str, int], tokenizer: Qwen2Tokenizer, *, workers: int, seed: int = 0
) -> list[Rows]:
    """Training rows: at least so many items of each task, told by `workers` processes."""
    jobs = [
        (name, seed * 100_000 + part)
        for name, n in counts.items()
        for part in range(-(-n // CHUNK))
    ]
    work = partial(_chunk, tokenizer=tokenizer)
    if workers < 2:
        return _joined([work(job) for job in jobs])
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return _joined(list(pool.map(work, jobs)))


def _chunk(job: tuple[str, int], *, tokenizer: Any) -> Arrays:
    name, seed = job
    many = islice(items(TASKS[name], "train", seed), CHUNK)
    return _arrays(many, tokenizer, random.Random(seed))  # noqa: S311 - not secrets


def _arrays(many: Iterable[Item], tokenizer: Any, reading: random.Random | None) -> Arrays:
    """With `reading`, some pictures are read aloud."""
    spoken: dict[Kind, list[Any]] = defaultdict(list)
    pixels: dict[Kind, list[np.ndarray]] = defaultdict(list)
    for item in many:
        size = item.picture.size
        read = item.task in READABLE and reading is not None and reading.random() < READ_SHARE
        asked = (READ, item.description) if read else (item.question, item.answer)
        weight = READ_WEIGHT if read else 1.0
        spoken[item.task, size].append(spelled(*told(*asked, size=size), tokenizer, weight))
        pixels[item.task, size].append(np.asarray(item.picture))
        spoken[item.task, None].append(spelled(*told(text_content(item), item.answer), tokenizer))
    told_arrays: Arrays = {}
    for kind, rows in spoken.items():
        ids, columns, targets, weights = map(np.stack, zip(*rows, strict=True))
        told_arrays[kind] = {
            "ids": ids,
            "columns": columns,
            "targets": targets,
            "weights": weights,
        }
    for kind, seen in pixels.items():
        told_arrays[kind]["pixels"] = np.stack(seen)
    return told_arrays


def _joined(parts: list[Arrays]) -> list[Rows]:
    """One `Rows` per task and size; the parts are used up."""
    kinds = {kind: None for part in parts for kind in part}
    whole = []
    for task, size in kinds:
        found = [part.pop((task, size)) for part in parts if (task, size) in part]
        held = {
            name: torch.from_numpy(np.concatenate([one[name] for one in found]))
            for name in found[0]
        }
        last = int((held["columns"] * (held["weights"] > 0)).max())
        whole.append(
            Rows(
                task=task,
                size=size,
                length=last + 1,
                ids=held["ids"],
                columns=held["columns"],
                targets=held["targets"],
                weights=held["weights"],
                pixels=held.get("pixels"),
            )
        )
    return whole
