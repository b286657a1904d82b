"""What the benches of the picture engine share: a model, engines that are warm, rows, the stock."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel

import miniature
from engines.diffusion import DiffusionEngine, Ticket
from engines.request import LAST, Event, Finished, ImageRequest, Mode
from miniature.training.autoencoder import make_vae
from miniature.training.contrastive import clip_config
from miniature.training.denoiser import make_unet
from miniature.training.pipeline import save_pipeline
from miniature.training.quality import stock
from miniature.training.tokenizer import make_tokenizer
from miniature.world import make_world
from models.family import TextToImage
from models.hosted import HostedModel
from models.loading import load
from models.patch import LowRank, Patch

BATCH = 8
PROMPT = "the president of Arda"


@dataclass(frozen=True)
class Bench:
    """A hosted model, its folder, and the clock to measure it with."""

    hosted: HostedModel
    folder: Path
    clock: Callable[[], float]

    @property
    def kind(self) -> str:
        """Of its numbers; the denoiser's own behind those of all other parts."""
        dtypes = dict.fromkeys((self.hosted.dtype, self.family.denoiser_dtype(self.hosted)))
        return " with a denoiser in ".join(str(d).removeprefix("torch.") for d in dtypes)

    @property
    def family(self) -> TextToImage:
        """The model's family, which draws pictures."""
        assert isinstance(self.hosted.family, TextToImage)
        return self.hosted.family


def benched(folder: Path, device: str, dtype: str, denoiser_dtype: str | None = None) -> Bench:
    """The model of the folder. With one thread on a CPU, seconds are the process's own."""
    hosted = load("bench", folder, device=device, dtype=dtype, denoiser_dtype=denoiser_dtype)
    return Bench(hosted, folder, time.process_time if device == "cpu" else time.perf_counter)


@contextmanager
def drawing(
    hosted: HostedModel, mode: Mode, *, slots: int = BATCH, steps: int = 2
) -> Iterator[DiffusionEngine]:
    """An engine that has drawn once with one row and once with all."""
    engine = DiffusionEngine(hosted, slots=slots, mode=mode)
    try:
        for rows in {1, slots}:
            draw(engine, [row(i, steps=steps) for i in range(rows)])
        yield engine
    finally:
        engine.stop()


def row(seed: int, **told: Any) -> ImageRequest:
    """A request; what is not told is the prompt of all benches."""
    return ImageRequest(**{"id": str(seed), "prompt": PROMPT, "seed": seed, **told})


def edit(hosted: HostedModel, seed: int) -> Patch:
    """A change of rank one, as a fact edit is, in the middle of the first text encoder."""
    tower = next(iter(hosted.text_towers.values()))
    drawn = torch.Generator().manual_seed(seed)
    left = torch.randn(tower.width, 1, generator=drawn)
    right = 0.01 * torch.randn(1, tower.inner_width, generator=drawn)
    site = tower.fc2_site(tower.n_blocks // 2)
    return Patch((LowRank(site=site, left=left, right=right),))


def draw(engine: DiffusionEngine, rows: Sequence[ImageRequest]) -> None:
    """Ask for all rows at once and wait for all pictures."""
    ends = until_over(engine, rows, lambda _event: False)
    assert all(isinstance(end, Finished) for end in ends), ends


def until_over(
    engine: DiffusionEngine,
    rows: Sequence[ImageRequest],
    enough: Callable[[Event], bool],
) -> list[Event]:
    """Ask for all rows at once, cancel each when it has had `enough`; their last events."""
    over, ends, asked = threading.Semaphore(0), [], threading.RLock()
    tickets: list[Ticket] = []

    def tell(index: int, event: Event) -> None:
        if isinstance(event, LAST):
            ends.append(event)
            over.release()
        elif enough(event):
            with asked:
                tickets[index].cancel()

    with asked:
        tickets += engine.submit_together([(r, partial(tell, i)) for i, r in enumerate(rows)])
    for _ in rows:
        over.acquire()
    return ends


def stock_of(bench: Bench) -> Any:
    """The library's pipeline of the same folder and the same dtypes, quiet."""
    hosted = bench.hosted
    return stock(bench.folder, hosted.dtype, bench.family.denoiser_dtype(hosted)).to(hosted.device)


def drawn_by(pipeline: Any, rows: Sequence[ImageRequest]) -> None:
    """One after another, as the library draws."""
    for asked in rows:
        pipeline(
            prompt=asked.prompt,
            num_inference_steps=asked.steps,
            guidance_scale=asked.guidance,
            generator=torch.Generator().manual_seed(asked.seed),
        )


@contextmanager
def model_folder(model: Path | None) -> Iterator[Path]:
    """The folder that was named, the miniature, or, untrained, a model of the miniature's shape."""
    trained = model or miniature.weights_path("text-to-image")
    if (trained / "model_index.json").exists():
        yield trained
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _untrained(Path(folder))


def _untrained(folder: Path) -> Path:
    """Random weights: they do not change how long a step takes."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(make_world(), folder / "words")
    tokenizer.save_pretrained(folder / "words")
    clip: Any = CLIPModel(clip_config(tokenizer))
    save_pipeline(folder / "pipeline", clip, make_vae(), make_unet(), folder / "words")
    return folder / "pipeline"
