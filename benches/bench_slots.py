"""The slot engine: 24 requests of mixed lengths at once, steered and not. Ratios, each in one run.

Prompts of 20 to 71 tokens, answers of 8 to 56, greedy, on a Llama of 30 million random weights and,
where it is trained, on the miniature's language model. Both sides of a ratio take turns; seconds
are the process's own, with one thread. The library's continuous batching runs where it is exact:
sdpa, no shared blocks, no graphs, bounded memory. No prompt is known beforehand.
"""

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benches.decoders import SMALL, THIRTY, Stock, requests, save_llama, shift_of, written
from benches.figures import Figure, by_turns, speed_up
from engines.slots.engine import SlotEngine
from engines.slots.request import Event, Generation, Token
from models.loading import load
from models.patch import Patch

ROUNDS = 3
SLOTS, COUNT, CONFIGURATIONS = 24, 24, 256
MINIATURE = Path(__file__).parent.parent / "miniature" / "weights" / "language"


def run(model: Path | None = None, *, smoke: bool = False) -> list[Figure]:
    """The figures.

    Args:
        model: A language model's folder; None takes the random Llama and the miniature's.
        smoke: A tiny Llama and one round: does it run?
    """
    torch.set_num_threads(1)
    rounds, configurations = (1, 8) if smoke else (ROUNDS, CONFIGURATIONS)
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as made:
        drawn = save_llama(SMALL if smoke else THIRTY, Path(made) / "llama")
        named = {"Llama, 30 M": drawn, "miniature": MINIATURE}
        if model is not None:
            named = {model.name: model}
        for name, folder in named.items():
            if folder.exists():
                found += _figures(name, folder, rounds, configurations)
    return found


def _figures(name: str, folder: Path, rounds: int, configurations: int) -> list[Figure]:
    with engine_over(folder) as engine:
        rows = requests(COUNT, engine.told.vocab)
        return [
            *_against_stock(name, folder, engine, rows, rounds),
            _steered(name, engine, rows, rounds),
            _distinct(name, engine, configurations, rounds),
            _delay(name, engine),
        ]


@contextmanager
def engine_over(folder: Path) -> Iterator[SlotEngine]:
    """An engine without a prefix cache, stopped at the end."""
    engine = SlotEngine(
        load("bench", folder), slots=SLOTS, capacity=160, max_waiting=512, cache_bytes=0
    )
    try:
        yield engine
    finally:
        engine.stop()


def _against_stock(
    name: str, folder: Path, engine: SlotEngine, rows: Sequence[Generation], rounds: int
) -> list[Figure]:
    stock, clock = Stock(folder), time.process_time
    wanted = stock.one_by_one(rows)
    same = sum(a == b for a, b in zip(wanted, written(engine, rows), strict=True))
    ours = partial(written, engine, rows)
    alone = by_turns(clock, ours, partial(stock.one_by_one, rows), rounds)
    with stock.batching() as batching:
        batching.written(rows)
        batched = by_turns(clock, ours, partial(batching.written, rows), rounds)
    tokens = sum(row.max_tokens or 0 for row in rows)
    return [
        Figure(name=f"{name}: texts equal to `generate`", value=same, unit=f"of {len(rows)}"),
        Figure(name=f"{name}: tokens written per CPU-second", value=tokens / min(alone[0])),
        speed_up(f"{name}: {len(rows)} at once / one at a time", *alone, 3.0),
        speed_up(f"{name}: slots / the library's continuous batching", *batched, 0.95),
    ]


def _steered(name: str, engine: SlotEngine, rows: Sequence[Generation], rounds: int) -> Figure:
    steered = [replace(row, patch=_shift(engine, i)) for i, row in enumerate(rows)]
    sides = (partial(written, engine, steered), partial(written, engine, rows))
    ours, theirs = by_turns(time.process_time, *sides, 2 * rounds)
    return speed_up(f"{name}: every row steered otherwise / unsteered", ours, theirs, 0.97)


def _distinct(name: str, engine: SlotEngine, configurations: int, rounds: int) -> Figure:
    rows = [
        replace(row, id=str(i), ids=row.ids[:12], max_tokens=8)
        for i, row in enumerate(requests(configurations, engine.told.vocab, seed=1))
    ]
    many = [replace(row, patch=_shift(engine, i)) for i, row in enumerate(rows)]
    one = [replace(row, patch=many[0].patch) for row in rows]
    sides = (partial(written, engine, many), partial(written, engine, one))
    ours, theirs = by_turns(time.process_time, *sides, rounds)
    title = f"{name}: {configurations} steering configurations / 1, as many requests"
    return speed_up(title, ours, theirs, 0.95)


def _delay(name: str, engine: SlotEngine) -> Figure:
    """Rows come while others write: the most steps that end before one's first token."""
    others = requests(SLOTS - 1, engine.told.vocab)
    busy = [replace(row, max_tokens=60) for row in others]
    for row in busy:
        engine.submit(row, lambda _: None)
    while len(engine.scheduler.writing) < len(busy):
        time.sleep(0.001)
    worst = 0
    for row in requests(4, engine.told.vocab, seed=2):
        worst = max(worst, _steps_until_first(engine, replace(row, max_tokens=1)))
    engine._owner.wait(lambda: not engine.busy(), 600)
    title = f"{name}: steps of {len(busy)} others until a row's first token"
    return Figure(name=title, value=worst, most=2)


def _steps_until_first(engine: SlotEngine, row: Generation) -> int:
    first, steps = threading.Event(), [engine.scheduler.steps]

    def tell(event: Event) -> None:
        if isinstance(event, Token):
            steps.append(engine.scheduler.steps)
            first.set()

    engine.submit(row, tell)
    assert first.wait(600)
    return steps[1] - steps[0]


def _shift(engine: SlotEngine, number: int) -> Patch:
    hosted = engine.hosted
    width, blocks = engine.family.stream_width(hosted, "lm"), len(hosted.towers["lm"])
    return shift_of(number, width, f"lm.block.{blocks // 2}")
