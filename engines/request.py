"""What a row of the picture engine asks for, and what it hears back."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from models.errors import Refusal
from models.patch import Patch


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One picture.

    Attributes:
        id: Names the row in events and cancels.
        seed: Of the row's own CPU generator.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; at 1 or below no negative prompt is read.
        sampler: Its name, None for the model's own.
        height, width: In pixels, None for the model's own.
        patch: What the row's text encoders shall do differently.
        patch_negative: Whether the negative prompt is read under the patch too, as an edit of the
            weights would have it.
        previews: Decode a preview every so many steps; 0 for none.
        seconds: How long the caller waits.
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    seed: int = 0
    steps: int = 25
    guidance: float = 7.5
    sampler: str | None = None
    height: int | None = None
    width: int | None = None
    patch: Patch = field(default_factory=Patch)
    patch_negative: bool = True
    previews: int = 0
    seconds: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A denoising step is done."""

    done: int
    total: int
    preview: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The picture, uint8 (height, width, 3), and how it came about."""

    image: np.ndarray
    seed: int
    mode: str
    slots: int
    tokens_changed: int
    cached: bool
    seconds: float


@dataclass(frozen=True)
class Failed:
    """The row ended with a refusal."""

    why: Refusal


@dataclass(frozen=True)
class Cancelled:
    """The row was cancelled by its caller."""


Event = Step | Finished | Failed | Cancelled
Mode = Literal["exact", "fast"]
