"""The lens, and the step loop around it: sharing, overhead, company, memory, the first preview.

All layers of a prompt in one batch against one request after another, each on an engine with a slot
per layer. In `exact` mode, which is what is shipped, a single request costs what a full batch
costs, so that sharing wins nearly the whole batch; in `fast` mode a single request costs its own
two rows, and what is left is what wide calls gain on this machine. Step-loop overhead: an engine of
one slot in `fast` mode against the library's pipeline, texts and decoding included, each text known
to neither. Company: the denoising steps of eight rows that differ in steps, guidance and sampler,
against eight that agree, while all eight are there. On a CPU with one thread seconds are the
process's own.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benches.drawing import (
    BATCH,
    PROMPT,
    Bench,
    benched,
    draw,
    drawing,
    drawn_by,
    model_folder,
    row,
    stock_of,
    until_over,
)
from benches.figures import Figure, by_turns, speed_up
from benches.memory import forget_peak, peak_of_process
from engines import samplers
from engines.cache import Embeddings, Reading
from engines.request import Event, ImageRequest, Mode, Step
from models.family import FAMILIES
from models.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything is measured.

    Attributes:
        layer_steps, layer_rounds: Of the lens; a round in `exact` mode draws every layer twice.
        steps, rounds: Against the library's pipeline.
        together, company_rounds: Denoising steps that eight rows take together.
        previews: First previews waited for.
    """

    layer_steps: int = 6
    layer_rounds: int = 2
    steps: int = 20
    rounds: int = 15
    together: int = 8
    company_rounds: int = 6
    previews: int = 7


SMALL = Sizes(
    layer_steps=1, layer_rounds=1, steps=2, rounds=2, together=2, company_rounds=2, previews=1
)


def run(model: Path | None = None, device: str = "cpu", *, smoke: bool = False) -> list[Figure]:
    """The figures.

    Args:
        model: As the engine's bench.
        device: Where it runs.
        smoke: Small sizes: does it run?
    """
    torch.set_num_threads(1)
    sizes = SMALL if smoke else Sizes()
    with model_folder(model) as folder, tempfile.TemporaryDirectory() as toys:
        whole = benched(folder, device, "float32")
        half = benched(folder, device, "bfloat16")
        toy = benched(FAMILIES["stable_diffusion"].tiny(Path(toys) / "toy"), device, "float32")
        return [
            *layers(whole, "exact", sizes, 2.0),
            *layers(whole, "fast", sizes, 2.0),
            *layers(half, "fast", sizes, 2.0),
            overhead(whole, sizes),
            overhead(half, sizes),
            *company(whole, sizes),
            beside(toy, sizes),
            *memory(whole),
            *first_preview(whole, sizes),
        ]


def layers(bench: Bench, mode: Mode, sizes: Sizes, least: float | None = None) -> list[Figure]:
    """Every layer's picture at once, against one request for each."""
    lens = bench.family.lens(bench.hosted)
    many = lens.ordinary + 1
    rows = [row(1, patch=lens.exit(i), steps=sizes.layer_steps) for i in range(many)]
    with drawing(bench.hosted, mode, slots=many) as engine:

        def all_at_once() -> None:
            engine.embeddings.kept.clear()
            draw(engine, rows)

        def one_by_one() -> None:
            engine.embeddings.kept.clear()
            for asked in rows:
                draw(engine, [asked])

        ours, theirs = by_turns(bench.clock, all_at_once, one_by_one, sizes.layer_rounds)
    name = f"{many} layers in one batch / {many} single requests, {mode}, {bench.kind}"
    return [speed_up(name, ours, theirs, least)]


def overhead(bench: Bench, sizes: Sizes) -> Figure:
    """One request at a time; each prompt is new, as it is to the library."""
    pipeline = stock_of(bench)
    rows = [
        [row(i, prompt=f"{PROMPT} number {i}", steps=sizes.steps)] for i in range(sizes.rounds + 1)
    ]
    drawn_by(pipeline, rows[-1])
    ours, theirs = iter(rows), iter(rows)
    with drawing(bench.hosted, "fast", slots=1) as engine:
        took = by_turns(
            bench.clock,
            lambda: draw(engine, next(ours)),
            lambda: drawn_by(pipeline, next(theirs)),
            sizes.rounds,
        )
    value = statistics.median(o / t for o, t in zip(*took, strict=True))
    name = f"seconds of one picture, engine of one slot / stock pipeline, {bench.kind}"
    return Figure(name=name, value=value, unit="x", most=1.03)


def company(bench: Bench, sizes: Sizes) -> list[Figure]:
    """Rows that differ in steps, guidance and sampler against rows that agree."""
    alike, different = _steps_together(bench, sizes, bench.clock)
    share = statistics.median(d / a for a, d in zip(alike, different, strict=True)) - 1
    name = f"8 rows that all differ in steps, guidance, sampler: each further kind, {bench.kind}"
    return [Figure(name=name, value=100 * share / (BATCH - 1), unit="% of a step")]


def beside(toy: Bench, sizes: Sizes) -> Figure:
    """The same in absolute time, where the denoiser is so small that it shows."""
    alike, different = _steps_together(toy, replace(sizes, company_rounds=20), toy.clock)
    seconds = statistics.median(d - a for a, d in zip(alike, different, strict=True))
    each = 1e6 * seconds / sizes.together / (BATCH - 1)
    return Figure(name="the same on a toy: each further kind, per step", value=each, unit="µs")


def _steps_together(
    bench: Bench, sizes: Sizes, clock: Callable[[], float]
) -> tuple[list[float], list[float]]:
    """Seconds of alike and of different rows, cancelled while all of them are still there."""
    longest = sizes.together + BATCH
    named = bench.family.samplers
    alike = [row(i, steps=longest, sampler=named[0]) for i in range(BATCH)]
    different = [
        row(
            i,
            steps=sizes.together + 1 + i,
            guidance=3.0 + i / 2,
            sampler=named[i % len(named)],
        )
        for i in range(BATCH)
    ]

    def enough(event: Event) -> bool:
        return isinstance(event, Step) and event.done == sizes.together

    with drawing(bench.hosted, "exact") as engine:

        def together(rows: Sequence[ImageRequest]) -> None:
            until_over(engine, rows, enough)

        together(different)
        return by_turns(
            clock, partial(together, alike), partial(together, different), sizes.company_rounds
        )


def memory(bench: Bench) -> list[Figure]:
    """What one more row holds, counted, and what the process or the device needs at most."""
    found = []
    shape = bench.family.latent_shape(bench.hosted, *bench.family.default_size(bench.hosted))
    readings = [Reading(text=PROMPT, patch=Patch())]
    readings += [Reading(text=None, patch=Patch(), negative=True)]
    said = Embeddings(bench.hosted, bench.family, 2**20).read(readings)
    texts = sum(e.conditioning.nbytes for e in said)  # pyright: ignore[reportAttributeAccessIssue]
    for sampler in (bench.family.samplers[0], "dpmpp_2m"):
        sampling = samplers.begin(bench.family, bench.hosted, sampler, 20, 0, shape)
        latents = sampling.noise(shape, bench.hosted.dtype, bench.hosted.device)
        for _ in range(3):  # multistep samplers remember earlier steps
            latents = sampling.step(torch.zeros_like(latents), latents)
        held = latents.nbytes + texts + scheduler_bytes(vars(sampling.scheduler))
        found.append(Figure(name=f"one row holds, {sampler}", value=held / 1024, unit="KiB"))
    grown = (peak(bench, BATCH) - peak(bench, 1)) / (BATCH - 1)
    where = "device" if bench.hosted.device.type == "cuda" else "process"
    name = f"peak memory of the {where}, fast, each row from 1 to 8"
    return [*found, Figure(name=name, value=grown / 2**20, unit="MiB")]


def scheduler_bytes(told: object) -> int:
    """Of all tensors and arrays in there."""
    return sum(int(part.nbytes) for part in _numbers(told))


def _numbers(told: object) -> Iterator[Tensor | np.ndarray]:
    if isinstance(told, Tensor | np.ndarray):
        yield told
    elif isinstance(told, Mapping):
        yield from (found for part in told.values() for found in _numbers(part))
    elif isinstance(told, list | tuple):
        yield from (found for part in told for found in _numbers(part))


def peak(bench: Bench, rows: int) -> int:
    """Bytes at most while so many rows are drawn."""
    on_gpu = bench.hosted.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()
    with drawing(bench.hosted, "fast", slots=rows) as engine:
        draw(engine, [row(i, steps=2) for i in range(rows)])
    return torch.cuda.max_memory_allocated() if on_gpu else peak_of_process()


def first_preview(bench: Bench, sizes: Sizes) -> list[Figure]:
    """From the request to the first preview, on an engine with nothing else to do."""
    found = []
    for mode in ("exact", "fast"):
        with drawing(bench.hosted, mode) as engine:
            times = [_until_preview(bench, engine, i) for i in range(sizes.previews)]
        name = f"request to first preview, {mode} with 8 slots, {bench.kind}"
        found.append(Figure(name=name, value=1000 * statistics.median(times), unit="ms"))
    return found


def _until_preview(bench: Bench, engine: Any, i: int) -> float:
    seen: list[float] = []

    def shown(event: Event) -> bool:
        if not isinstance(event, Step) or event.preview is None:
            return False
        seen.append(bench.clock())
        return True

    started = bench.clock()
    until_over(engine, [row(i, prompt=f"{PROMPT} number {i}", steps=20, previews=1)], shown)
    return seen[0] - started
