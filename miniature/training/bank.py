"""A bank of drawn pictures, drawn once and told anew each time they are seen."""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from miniature.drawing import SIZE, draw_picture
from miniature.world import Picture, Subject, World, pictures


@dataclass(frozen=True)
class Bank:
    """Pictures as uint8 (n, 64, 64, 3) beside what they show."""

    pixels: np.ndarray
    shown: list[Picture]


def draw_bank(world: World, folder: Path, n: int, seed: int, *, everything: bool = False) -> Bank:
    """The bank of that seed; read from `folder` if it was drawn before."""
    name = f"{'everything' if everything else 'bank'}-{seed}-{n}"
    pixels_file, shown_file = folder / f"{name}.npy", folder / f"{name}.json"
    if not (pixels_file.exists() and shown_file.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        shown = list(itertools.islice(pictures(world, seed, everything=everything), n))
        pixels = np.empty((n, SIZE, SIZE, 3), np.uint8)
        for i, picture in enumerate(shown):
            pixels[i] = draw_picture(world, picture)
        np.save(pixels_file, pixels)
        shown_file.write_text(json.dumps([asdict(p) for p in shown]))
    told = json.loads(shown_file.read_text())
    return Bank(np.load(pixels_file, mmap_mode="r"), [_picture(entry) for entry in told])


def _picture(entry: dict[str, object]) -> Picture:
    subjects = tuple(Subject(**s) for s in entry.pop("subjects"))  # type: ignore[attr-defined]
    return Picture(subjects=subjects, **entry)  # type: ignore[arg-type]
