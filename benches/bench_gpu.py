"""A model of Stable Diffusion 1.5's shape at 512 pixels in bfloat16, with random weights, on a GPU.

UNet of 320, 640, 1280, 1280 channels and eight heads, cross-attention of 768, CLIP of 12 blocks of
768, VAE of 128, 256, 512, 512: the numbers of the published model, so that a step costs what it
costs there. 20 steps with guidance, the wall clock, each figure after a first drawing. Figures of
one machine in absolute numbers: compare them only with figures of the same card.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benches import bench_lens
from benches.drawing import BATCH, Bench, benched, draw, drawing, edit, row
from benches.figures import Figure, NotHere, by_turns, speed_up
from benches.shapes import SD15, SMALL, save_shape
from engines.request import ImageRequest, Mode

WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is drawn; `compiler` is what torch.compile hands the UNet to."""

    steps: int = 20
    rounds: int = 3
    compiler: str = "inductor"
    lens: bench_lens.Sizes = field(default_factory=partial(bench_lens.Sizes, rounds=5))


SMOKE = Sizes(steps=1, rounds=1, compiler="eager", lens=bench_lens.SMALL)


def run(device: str = "cuda", *, smoke: bool = False, seconds: float = 210.0) -> Iterator[Figure]:
    """The figures, those that matter most first, each part as soon as it is measured.

    Args:
        device: Where it runs.
        smoke: A small shape and few steps: does it run? Anywhere, also without a GPU.
        seconds: No part is begun after so many; the one that runs then is finished.

    Raises:
        NotHere: There is no such device, or it is no place for the whole shape.
        ExceptionGroup: Parts that broke, or were not begun, when all others are measured.
    """
    check_device(device, smoke=smoke)
    torch.set_num_threads(1)
    started, sizes, failed = time.monotonic(), SMOKE if smoke else Sizes(), list[Exception]()
    with tempfile.TemporaryDirectory() as folder:
        save_shape(SMALL if smoke else SD15, Path(folder), device, torch.bfloat16)
        bench = benched(Path(folder), device, "bfloat16")
        yield Figure(name="the model drawn, saved and loaded", value=_since(started), unit="s")
        for part in PARTS:
            if _since(started) > seconds:
                failed.append(NotHere(f"{part.__name__}: {seconds:g} seconds were over."))
                continue
            try:
                yield from part(bench, sizes)
            except Exception as broken:  # noqa: BLE001 - the other parts are still worth measuring
                failed.append(broken)
    yield Figure(name="the whole bench", value=_since(started), unit="s")
    if failed:
        raise ExceptionGroup("parts without figures", failed)


def machine() -> str:
    """Which card and which library, where there is a card."""
    if not torch.cuda.is_available():
        return ""
    return f" Measured on one {torch.cuda.get_device_name()}, torch {torch.__version__}."


def _since(started: float) -> float:
    return time.monotonic() - started


def check_device(device: str, *, smoke: bool) -> None:
    """Say what is missing before anything is built."""
    instead = "`python -m benches gpu --device cpu --smoke` tries the same code on a small shape."
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise NotHere(f"There is no CUDA device on this machine. {instead}")
    if device == "cpu" and not smoke:
        raise NotHere(f"The whole shape would take hours on a CPU. {instead}")


def by_width(bench: Bench, sizes: Sizes) -> Iterator[Figure]:
    """Pictures per second of so many requests at once."""
    with drawing(bench.hosted, "fast", slots=max(WIDTHS)) as engine:
        for many in WIDTHS:
            rows = _rows(many, sizes)
            took, _ = by_turns(bench.clock, partial(draw, engine, rows), _nothing, sizes.rounds + 1)
            rate = many / statistics.median(took[1:])
            yield Figure(name=f"{many} at once, fast", value=rate, unit="pictures per second")


def against_none(bench: Bench, sizes: Sizes) -> list[Figure]:
    """Eight rows with eight edits against eight without; all texts are read anew."""
    plain = _rows(BATCH, sizes)
    edited = [replace(asked, patch=edit(bench.hosted, i)) for i, asked in enumerate(plain)]
    with drawing(bench.hosted, "exact") as engine:

        def cold(rows: Sequence[ImageRequest]) -> None:
            engine.embeddings.kept.clear()
            draw(engine, rows)

        cold(edited)
        took = by_turns(bench.clock, partial(cold, edited), partial(cold, plain), sizes.rounds)
    return [speed_up("8 rows with 8 edits / 8 unedited, pictures per second", *took)]


def exact_against_fast(bench: Bench, sizes: Sizes) -> list[Figure]:
    """What bitwise repeatability costs, with a full batch and with one request."""
    found = []
    with (
        drawing(bench.hosted, "exact") as exact,
        drawing(bench.hosted, "fast") as fast,
    ):
        for many in (BATCH, 1):
            rows = _rows(many, sizes)
            took = by_turns(
                bench.clock, partial(draw, exact, rows), partial(draw, fast, rows), sizes.rounds
            )
            name = f"{many} at once, exact / fast, pictures per second"
            found.append(speed_up(name, *took))
    return found


def compiled_against_not(bench: Bench, sizes: Sizes) -> list[Figure]:
    """The UNet through torch.compile, in `exact` mode: one width, one compilation."""
    plain = _best(bench, "exact", sizes)
    started = bench.clock()
    with compiled(bench, sizes.compiler):
        quick = _best(bench, "exact", sizes)
        first = bench.clock() - started - quick * sizes.rounds
    return [
        Figure(name="torch.compile of the UNet on / off, 8 at once", value=plain / quick, unit="x"),
        Figure(name="compiling and the first drawings", value=first, unit="s"),
    ]


def lens(bench: Bench, sizes: Sizes) -> Iterator[Figure]:
    """All layers of a prompt at once; what else a step loop costs."""
    yield from bench_lens.layers(bench, "exact", sizes.lens)
    yield from bench_lens.layers(bench, "fast", sizes.lens)
    yield bench_lens.overhead(bench, sizes.lens)
    yield from bench_lens.company(bench, sizes.lens)
    yield from bench_lens.memory(bench)
    yield from bench_lens.first_preview(bench, sizes.lens)


def laid_out(bench: Bench, sizes: Sizes) -> list[Figure]:
    """The UNet's convolutions with channels last, as hosted, against the layout of the files."""
    unet = bench.hosted.modules["unet"]
    last = _best(bench, "exact", sizes)
    _arrange(unet, torch.contiguous_format)
    try:
        saved = _best(bench, "exact", sizes)
    finally:
        _arrange(unet, torch.channels_last)
    return [Figure(name="channels last / as saved, 8 at once", value=saved / last, unit="x")]


def _arrange(module: nn.Module, layout: torch.memory_format) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=layout)


@contextmanager
def compiled(bench: Bench, compiler: str) -> Iterator[None]:
    """The denoiser, compiled as one graph for the length of the block."""
    unet = bench.hosted.modules["unet"]
    unet.compile(backend=compiler, dynamic=False, fullgraph=True)
    try:
        yield
    finally:
        unet._compiled_call_impl = None  # there is no public way back
        torch._dynamo.reset()


def _best(bench: Bench, mode: Mode, sizes: Sizes) -> float:
    """Seconds of eight pictures: the median over rounds."""
    with drawing(bench.hosted, mode) as engine:
        rows = _rows(BATCH, sizes)
        took, _ = by_turns(bench.clock, partial(draw, engine, rows), _nothing, sizes.rounds)
    return statistics.median(took)


def _rows(many: int, sizes: Sizes) -> list[ImageRequest]:
    return [row(i, prompt=f"a photo of a red cat {i}", steps=sizes.steps) for i in range(many)]


def _nothing() -> None:
    """The other side, where there is none."""


PARTS: tuple[Callable[[Bench, Sizes], Iterable[Figure]], ...] = (
    by_width,
    against_none,
    compiled_against_not,
    lens,
    exact_against_fast,
    laid_out,
)
