"""The picture engine: what edits cost, and what sharing a batch gains. Ratios, each in one run.

Pictures of the miniature's size in 20 steps, with guidance, on an engine of 8 slots; float32 where
nothing else is said. Both sides of a ratio take turns and the median over the
rounds counts. On a CPU, with one thread, seconds are the process's own: other processes on the
machine would move the wall clock by more than what is measured. On a GPU they are the wall clock's.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPModel

import miniature
from engines.diffusion import DiffusionEngine
from engines.request import LAST, Event, Finished, ImageRequest, Mode
from miniature.training.autoencoder import make_vae
from miniature.training.contrastive import clip_config
from miniature.training.denoiser import make_unet
from miniature.training.pipeline import save_pipeline
from miniature.training.tokenizer import make_tokenizer
from miniature.world import make_world
from models.hosted import HostedModel
from models.loading import load
from models.patch import LowRank, Patch

STEPS = 20
BATCH = 8
ROUNDS = 5
ROTATED = 256
PROMPT = "the president of Arda"


@dataclass(frozen=True)
class Bench:
    """A hosted model, its folder, the clock, and an engine of each mode that has drawn once."""

    hosted: HostedModel
    folder: Path
    clock: Callable[[], float]
    exact: DiffusionEngine
    fast: DiffusionEngine


def run(model: Path | None = None, device: str = "cpu") -> list[dict[str, Any]]:
    """Rows of name, value, unit, target and passed.

    Args:
        model: A Stable Diffusion folder; None takes the miniature, or, where that is not trained
            yet, untrained weights of its shape: weights do not change how long a step takes.
        device: Where it runs.
    """
    torch.set_num_threads(1)
    with _folder(model) as folder:
        with benched(folder, device, "float32") as bench:
            found = [*_beside_unedited(bench), *_rotation(bench), *_against_stock(bench)]
        with benched(folder, device, "bfloat16") as bench:
            return [*found, *_against_stock(bench)]


@contextmanager
def benched(folder: Path, device: str, dtype: str) -> Iterator[Bench]:
    """The model of the folder, ready to be measured."""
    hosted = load("bench", folder, device=device, dtype=dtype)
    clock = time.process_time if device == "cpu" else time.perf_counter
    with drawing(hosted, "exact") as exact, drawing(hosted, "fast") as fast:
        yield Bench(hosted, folder, clock, exact, fast)


def _beside_unedited(bench: Bench) -> list[dict[str, Any]]:
    """Nothing is known beforehand on either side: every text is read anew."""
    edits = [edit(bench.hosted, i) for i in range(BATCH)]
    plain = [_row(i, prompt=f"{PROMPT} number {i}") for i in range(BATCH)]
    edited = [replace(row, patch=p) for row, p in zip(plain, edits, strict=True)]

    def cold(rows: Sequence[ImageRequest]) -> None:
        bench.exact.embeddings.kept.clear()
        draw(bench.exact, rows)

    ours, theirs = by_turns(bench.clock, partial(cold, edited), partial(cold, plain), ROUNDS)
    return [_ratio("8 rows with 8 edits / 8 unedited, pictures per second", ours, theirs, 0.98)]


def _rotation(bench: Bench) -> list[dict[str, Any]]:
    """One edit stays known after its first use; 256 in rotation are read anew every time."""
    edits = [edit(bench.hosted, i) for i in range(ROTATED)]
    rows = [replace(_row(i % BATCH), patch=p) for i, p in enumerate(edits)]
    turns = iter(range(0, ROTATED, BATCH))

    def rotated() -> None:
        first = next(turns)
        draw(bench.exact, rows[first : first + BATCH])

    same = [replace(row, patch=edits[0]) for row in rows[:BATCH]]
    again = partial(draw, bench.exact, same)
    again()
    ours, theirs = by_turns(bench.clock, rotated, again, ROTATED // BATCH)
    return [_ratio("256 edits in rotation / 1 edit, pictures per second", ours, theirs, 0.95)]


def _against_stock(bench: Bench) -> list[dict[str, Any]]:
    rows = [_row(i, prompt=f"{PROMPT} number {i}") for i in range(BATCH)]
    pipeline = _stock(bench)
    kind = str(bench.hosted.dtype).removeprefix("torch.")
    found = []
    for engine, some in ((bench.exact, rows), (bench.fast, rows), (bench.fast, rows[:1])):
        ours, theirs = by_turns(
            bench.clock, partial(draw, engine, some), partial(_drawn_by, pipeline, some), ROUNDS
        )
        name = f"{len(some)} at once, {engine.mode}, {kind} / stock pipeline one after another"
        found.append(_ratio(name, ours, theirs, 1.5 if len(some) == BATCH else None))
    return found


def _stock(bench: Bench) -> Any:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        bench.folder, dtype=bench.hosted.dtype, safety_checker=None
    )
    pipeline.to(bench.hosted.device).set_progress_bar_config(disable=True)
    return pipeline


def _drawn_by(pipeline: Any, rows: Sequence[ImageRequest]) -> None:
    for row in rows:
        pipeline(
            prompt=row.prompt,
            num_inference_steps=row.steps,
            guidance_scale=row.guidance,
            generator=torch.Generator().manual_seed(row.seed),
        )


def _row(seed: int, prompt: str = PROMPT) -> ImageRequest:
    return ImageRequest(id=str(seed), prompt=prompt, seed=seed, steps=STEPS)


def edit(hosted: HostedModel, seed: int) -> Patch:
    """A change of rank one, as a fact edit is, in the middle of the first text encoder."""
    tower = next(iter(hosted.text_towers.values()))
    drawn = torch.Generator().manual_seed(seed)
    left = torch.randn(tower.width, 1, generator=drawn)
    right = 0.01 * torch.randn(1, tower.inner_width, generator=drawn)
    site = tower.fc2_site(tower.n_blocks // 2)
    return Patch((LowRank(site=site, left=left, right=right),))


@contextmanager
def drawing(hosted: HostedModel, mode: Mode) -> Iterator[DiffusionEngine]:
    """An engine of eight slots that has drawn once."""
    engine = DiffusionEngine(hosted, slots=BATCH, mode=mode)
    try:
        draw(engine, [_row(i) for i in range(BATCH)])
        yield engine
    finally:
        engine.stop()


def draw(engine: DiffusionEngine, rows: Sequence[ImageRequest]) -> None:
    """Ask for all rows at once and wait for all pictures."""
    over, ends = threading.Semaphore(0), []

    def tell(event: Event) -> None:
        if isinstance(event, LAST):
            ends.append(event)
            over.release()

    for row in rows:
        engine.submit(row, tell)
    for _ in rows:
        over.acquire()
    assert all(isinstance(end, Finished) for end in ends), ends


def by_turns(
    clock: Callable[[], float], ours: Callable[[], None], theirs: Callable[[], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of both sides, round by round; who begins changes every round."""
    found: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        sides = [(found[0], ours), (found[1], theirs)]
        for seconds, side in sides if i % 2 else sides[::-1]:
            started = clock()
            side()
            seconds.append(clock() - started)
    return found


def _ratio(
    name: str, ours: Sequence[float], theirs: Sequence[float], target: float | None
) -> dict[str, Any]:
    value = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    passed = None if target is None else value >= target
    return {"name": name, "value": value, "unit": "x", "target": target, "passed": passed}


@contextmanager
def _folder(model: Path | None) -> Iterator[Path]:
    trained = model or miniature.weights_path("text-to-image")
    if (trained / "model_index.json").exists():
        yield trained
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _untrained(Path(folder))


def _untrained(folder: Path) -> Path:
    """A pipeline of the miniature's shape with random weights."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(make_world(), folder / "words")
    tokenizer.save_pretrained(folder / "words")
    clip: Any = CLIPModel(clip_config(tokenizer))
    save_pipeline(folder / "pipeline", clip, make_vae(), make_unet(), folder / "words")
    return folder / "pipeline"


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--model", type=Path, help="a Stable Diffusion folder; the miniature")
    asked.add_argument("--device", default="cpu")
    print(json.dumps(run(**vars(asked.parse_args())), indent=1))
