"""The picture engine: what edits cost, and what sharing a batch gains. Ratios, each in one run.

Pictures of the miniature's size in 20 steps, with guidance, on an engine of 8 slots. Both sides of
a ratio take turns and the median over the rounds counts. On a CPU, with one thread, seconds are the
process's own: other processes on the machine would move the wall clock by more than what is
measured. On a GPU they are the wall clock's. More than the denoiser itself gains from 16 rows in
one call no engine can gain from sharing a batch. As shipped, the miniature's denoiser computes in
bfloat16 where the CPU multiplies it; the stock pipeline beside it is given the same dtypes, and
targets are for what is shipped.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benches.drawing import (
    BATCH,
    PROMPT,
    Bench,
    benched,
    draw,
    drawing,
    drawn_by,
    edit,
    model_folder,
    row,
    stock_of,
)
from benches.figures import Figure, by_turns, speed_up
from engines.diffusion import DiffusionEngine
from engines.request import ImageRequest
from models.family import Conditioning
from models.loading import AUTO
from models.patch import Patch

STEPS = 20
ROUNDS, STOCK_ROUNDS = 5, 3
SHIPPED_ROUNDS = 7
"""Of the figures that have a target."""
ROTATED = 256
DISTANT = 4
"""Batches of the rotation per batch that repeats one edit: every edit counts, fewer repeats do."""


def run(model: Path | None = None, device: str = "cpu", *, smoke: bool = False) -> list[Figure]:
    """The figures.

    Args:
        model: A Stable Diffusion folder; None takes the miniature, or, where that is not trained
            yet, untrained weights of its shape: weights do not change how long a step takes.
        device: Where it runs.
        smoke: Two rounds of two steps: does it run?
    """
    torch.set_num_threads(1)
    steps, rounds, stock_rounds = (2, 2, 1) if smoke else (STEPS, ROUNDS, STOCK_ROUNDS)
    rotated = 2 * BATCH * DISTANT if smoke else ROTATED
    with model_folder(model) as folder:
        bench = benched(folder, device, "float32", AUTO)
        plain = [row(i, prompt=f"{PROMPT} number {i}", steps=steps) for i in range(BATCH)]
        with drawing(bench.hosted, "exact") as exact:
            found = [
                _beside_unedited(bench, exact, plain, rounds),
                _rotation(bench, exact, rotated, steps),
            ]
        found += against_stock(bench, plain, 1 if smoke else SHIPPED_ROUNDS, least=1.5)
        whole, half = (benched(folder, device, dtype) for dtype in ("float32", "bfloat16"))
        if bench.kind != whole.kind:
            found += against_stock(whole, plain, stock_rounds)
            found.append(_shipped(bench, whole, plain, stock_rounds))
        return [*found, *against_stock(half, plain, stock_rounds)]


def _shipped(bench: Bench, whole: Bench, rows: Sequence[ImageRequest], rounds: int) -> Figure:
    """What the denoiser's own dtype gains."""
    with drawing(bench.hosted, "exact") as ours, drawing(whole.hosted, "exact") as theirs:
        took = by_turns(bench.clock, partial(draw, ours, rows), partial(draw, theirs, rows), rounds)
    return speed_up(f"8 at once, exact, {bench.kind} / {whole.kind}", *took)


def _beside_unedited(
    bench: Bench, engine: DiffusionEngine, plain: Sequence[ImageRequest], rounds: int
) -> Figure:
    """Nothing is known beforehand on either side: every text is read anew."""
    edits = [edit(bench.hosted, i) for i in range(BATCH)]
    edited = [replace(asked, patch=p) for asked, p in zip(plain, edits, strict=True)]

    def cold(rows: Sequence[ImageRequest]) -> None:
        engine.embeddings.kept.clear()
        draw(engine, rows)

    ours, theirs = by_turns(bench.clock, partial(cold, edited), partial(cold, plain), rounds)
    return speed_up("8 rows with 8 edits / 8 unedited, pictures per second", ours, theirs, 0.98)


def _rotation(bench: Bench, engine: DiffusionEngine, rotated: int, steps: int) -> Figure:
    """One edit stays known after its first use; 256 in rotation are read anew every time."""
    rows = [row(i % BATCH, patch=edit(bench.hosted, i), steps=steps) for i in range(rotated)]
    turns = iter(range(0, rotated, BATCH))

    def some() -> None:
        for _ in range(DISTANT):
            first = next(turns)
            draw(engine, rows[first : first + BATCH])

    same = [replace(asked, patch=rows[0].patch) for asked in rows[:BATCH]]
    again = partial(draw, engine, same)
    again()
    ours, theirs = by_turns(bench.clock, some, again, rotated // BATCH // DISTANT)
    name = f"{rotated} edits in rotation / 1 edit, pictures per second"
    return speed_up(name, [seconds / DISTANT for seconds in ours], theirs, 0.95)


def against_stock(
    bench: Bench, rows: Sequence[ImageRequest], rounds: int, *, least: float | None = None
) -> list[Figure]:
    """All rows at once, and one, against the library's pipeline; what the denoiser itself gains."""
    pipeline, found = stock_of(bench), []
    for mode in ("exact", "fast"):
        with drawing(bench.hosted, mode) as engine:
            for some in (rows, rows[:1]) if mode == "fast" else (rows,):
                ours, theirs = by_turns(
                    bench.clock,
                    partial(draw, engine, some),
                    partial(drawn_by, pipeline, some),
                    rounds,
                )
                name = f"{len(some)} at once, {mode}, {bench.kind}"
                name += " / stock pipeline one after another"
                target = least if len(some) == BATCH else None
                found.append(speed_up(name, ours, theirs, target))
    return [*found, denoiser_alone(bench, rounds)]


def denoiser_alone(bench: Bench, rounds: int) -> Figure:
    """What wide calls gain by themselves: 8 guided rows in one call against 8 calls of one."""
    said = bench.family.encode(bench.hosted, [PROMPT], [Patch()])
    shape = bench.family.latent_shape(bench.hosted, *bench.family.default_size(bench.hosted))

    def call(width: int) -> None:
        latents = torch.zeros(width, *shape, dtype=bench.hosted.dtype, device=bench.hosted.device)
        timesteps = torch.full((width,), 500.0, device=bench.hosted.device)
        reads = Conditioning.stack([said] * width)
        float(bench.family.denoise(bench.hosted, latents, timesteps, reads).sum())

    def one_by_one() -> None:
        for _ in range(BATCH):
            call(2)

    call(2 * BATCH)
    ours, theirs = by_turns(bench.clock, partial(call, 2 * BATCH), one_by_one, 2 * rounds)
    return speed_up(f"the denoiser alone, {bench.kind}: one call of 16 rows / 8 of 2", ours, theirs)
