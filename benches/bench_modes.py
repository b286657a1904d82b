"""What company does to a picture in `exact` and in `fast` mode, in 8-bit levels.

Eight requests that differ in prompt, seed, steps, sampler, guidance and edit are drawn one by one,
and then all at once on the same engine, which they leave one after another. Compared are all
values of their pictures.
"""

from pathlib import Path

import numpy as np
import torch

from benches.drawing import BATCH, Bench, benched, drawing, edit, model_folder, row, until_over
from benches.figures import Figure
from engines.diffusion import DiffusionEngine
from engines.request import Finished, ImageRequest, Mode
from models.patch import Patch

SAMPLERS = ("ddim", "euler", "pndm", "dpmpp_2m")
PROMPTS = ("the president of Arda", "a red ball", "Zira at the beach", "a blue house at night")


def run(model: Path | None = None, device: str = "cpu", *, smoke: bool = False) -> list[Figure]:
    """The largest difference and the share of values that differ, per mode and dtype.

    Args:
        model: A Stable Diffusion folder; None is the miniature.
        device: Where it runs.
        smoke: Two rows of a few steps, to see that it works.
    """
    torch.set_num_threads(1)
    found = []
    with model_folder(model) as folder:
        for dtype in ("float32", "bfloat16"):
            bench = benched(folder, device, dtype)
            for mode in ("exact", "fast"):
                found += _measured(bench, mode, smoke=smoke)
    return found


def _measured(bench: Bench, mode: Mode, *, smoke: bool) -> list[Figure]:
    rows = _rows(bench, 2, 2) if smoke else _rows(bench, BATCH, 16)
    with drawing(bench.hosted, mode) as engine:
        alone = [_pictures(engine, [asked]) for asked in rows]
        together = _pictures(engine, rows)
    off = np.concatenate([
        np.abs(of[asked.seed].astype(int) - together[asked.seed]).ravel()
        for asked, of in zip(rows, alone, strict=True)
    ])  # fmt: skip
    name, most = f"{mode}, {bench.kind}", 0.0 if mode == "exact" else None
    return [
        Figure(name=f"{name}: largest difference", value=off.max(), unit="levels", most=most),
        Figure(name=f"{name}: values that differ", value=100 * (off > 0).mean(), unit="%"),
        Figure(
            name=f"{name}: values that differ by more than one level",
            value=100 * (off > 1).mean(),
            unit="%",
        ),
    ]


def _rows(bench: Bench, n: int, steps: int) -> list[ImageRequest]:
    return [
        row(
            i,
            prompt=PROMPTS[i % len(PROMPTS)],
            steps=steps + i,
            sampler=SAMPLERS[i % len(SAMPLERS)],
            guidance=(7.5, 1.0, 3.0, 5.0)[i % 4],
            patch=edit(bench.hosted, i) if i % 2 == 0 else Patch(),
        )
        for i in range(n)
    ]


def _pictures(engine: DiffusionEngine, rows: list[ImageRequest]) -> dict[int, np.ndarray]:
    """By seed."""
    ends = until_over(engine, rows, lambda _event: False)
    assert all(isinstance(end, Finished) for end in ends), ends
    return {end.seed: end.image for end in ends if isinstance(end, Finished)}
