"""What a row of the picture engine asks for, and what it hears back."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from models.errors import Refusal
from models.family import Beside
from models.patch import Exit, Patch

Mode = Literal["exact", "fast"]


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """One picture.

    Attributes:
        id: Names the row in events and cancels.
        seed: Of the row's own CPU generator, 0 to 2^63 - 1.
        draw: Which noise of that generator the row begins with; those before are thrown away.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; at 1 or below no negative prompt is read.
        sampler: Its name, None for the model's own.
        height, width: In pixels, None for the model's own.
        patch: What the row's text encoders shall do differently.
        patch_negative: Whether the negative prompt is read under the patch too, as an edit of the
            weights would have it.
        beside: What other paths than an early-left tower say: the empty prompt, or the whole one.
        previews: Decode a preview every so many steps; 0 for none.
        seconds: How long the caller waits, queue included.
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    seed: int = 0
    draw: int = 0
    steps: int = 25
    guidance: float = 7.5
    sampler: str | None = None
    height: int | None = None
    width: int | None = None
    patch: Patch = field(default_factory=Patch)
    patch_negative: bool = True
    beside: Beside = "blank"
    previews: int = 0
    seconds: float = 600.0

    @property
    def negative_patch(self) -> Patch:
        """What the negative prompt is read under: at full depth, whatever layer is looked at."""
        return self.patch.without(Exit) if self.patch_negative else Patch()


@dataclass(frozen=True, kw_only=True)
class Queued:
    """The request was taken; so many are in front of it."""

    ahead: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """A denoising step is done; the preview is uint8 (height, width, 3)."""

    done: int
    total: int
    preview: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The picture, and how it came about.

    Attributes:
        image: uint8 (height, width, 3).
        mode, slots, slot, batch, denoiser_dtype: With these the picture can be redone to the bit:
            the engine's mode and slots, the row's slot, the widest denoiser batch that it was part
            of, and what the denoiser computed in.
        tokens_changed: By the patch while the prompt was read, counted, over all its places.
        negative_tokens_changed: The same for the negative prompt.
        cached: The prompt's embedding was known already.
        waited, seconds: From the request to its slot, and to the picture.
    """

    image: np.ndarray
    seed: int
    mode: Mode
    slots: int
    slot: int
    batch: int
    denoiser_dtype: str
    tokens_changed: int
    negative_tokens_changed: int
    cached: bool
    waited: float
    seconds: float


@dataclass(frozen=True)
class Failed:
    """The row ended with a refusal."""

    why: Refusal


@dataclass(frozen=True)
class Cancelled:
    """The row was cancelled by its caller, or the engine was stopped."""


Event = Queued | Step | Finished | Failed | Cancelled
LAST = (Finished, Failed, Cancelled)
"""The events of which a row hears exactly one, at its end."""
