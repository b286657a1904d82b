"""Where rows stand in one denoiser call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from engines.request import Mode
from models.family import Conditioning


@dataclass(frozen=True)
class Key:
    """What rows of one denoiser call must share; nothing else needs to be equal.

    Attributes:
        shape: (channels, height, width) of the latents.
        layout: Tokens and widths of the conditioning.
        guided: Whether each row has a negative beside it; None where that may differ.
    """

    shape: tuple[int, int, int]
    layout: tuple[tuple[int, ...] | None, ...]
    guided: bool | None


@dataclass(frozen=True)
class Place:
    """A row's index in the batch, and that of its negative."""

    prompt: int
    negative: int | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one row brings: scaled latents (1, c, h, w), its timestep, what it reads."""

    latents: Float[Tensor, "1 c h w"]
    timestep: Tensor
    conditional: Conditioning
    unconditional: Conditioning | None


def key_of(mode: Mode, shape: tuple[int, int, int], reads: Conditioning, *, guided: bool) -> Key:
    """In `exact` mode guided rows keep to themselves, so that the width is known beforehand."""
    return Key(shape, reads.layout, guided if mode == "exact" else None)


def fixed(slots: Sequence[int], width: int, *, guided: bool) -> tuple[list[Place], int]:
    """Every row at its slot, negatives behind all of them; the same width whoever is there."""
    places = [Place(slot, width + slot if guided else None) for slot in slots]
    return places, 2 * width if guided else width


def packed(guided: Sequence[bool]) -> tuple[list[Place], int]:
    """Rows side by side, then their negatives, then zeros up to one of few widths.

    A power of two up to 8, beyond it a multiple of four: nine guided rows need 18 places, and would
    pay for 32.
    """
    places, end = [], len(guided)
    for i, beside in enumerate(guided):
        places.append(Place(i, end if beside else None))
        end += beside
    return places, -4 * (-end // 4) if end > 8 else 1 << (end - 1).bit_length()


def assemble(
    entries: Sequence[Entry], places: Sequence[Place], width: int
) -> tuple[Float[Tensor, "width c h w"], Float[Tensor, " width"]]:
    """Latents and timesteps of one denoiser call; zeros where nobody is."""
    first = entries[0].latents
    latents, timesteps = first.new_zeros(width, *first.shape[1:]), torch.zeros(width)
    for entry, place in zip(entries, places, strict=True):
        for at in (place.prompt, place.negative):
            if at is not None:
                latents[at], timesteps[at] = entry.latents[0], entry.timestep
    return latents, timesteps.to(latents.device)


@dataclass
class Texts:
    """What the rows of one key read, stacked anew only when other rows stand there.

    As long as they are the same, the denoiser is handed the same tensors, and need not project the
    texts at every step (`models.cross_attention`).
    """

    standing: tuple[tuple[Conditioning, int], ...] = ()
    width: int = 0
    stacked: Conditioning | None = None

    def of(self, entries: Sequence[Entry], places: Sequence[Place], width: int) -> Conditioning:
        """The conditioning of one denoiser call; zeros where nobody is."""
        standing = tuple(
            (reads, at)
            for entry, place in zip(entries, places, strict=True)
            for reads, at in (
                (entry.conditional, place.prompt),
                (entry.unconditional, place.negative),
            )
            if at is not None and reads is not None
        )
        if self.stacked is None or width != self.width or not _same(standing, self.standing):
            rows = [standing[0][0].each(torch.zeros_like)] * width
            for reads, at in standing:
                rows[at] = reads
            self.standing, self.width, self.stacked = standing, width, Conditioning.stack(rows)
        return self.stacked


def _same(
    these: Sequence[tuple[Conditioning, int]], those: Sequence[tuple[Conditioning, int]]
) -> bool:
    """Whether the very same conditionings stand at the same places."""
    pairs = zip(these, those, strict=False)
    return len(these) == len(those) and all(a is b and i == j for (a, i), (b, j) in pairs)
