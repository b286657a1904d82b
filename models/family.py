"""What a family is: a loader, a table of places, a toy, and what applies to it."""

import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from models.hosted import HostedModel
from models.patch import Patch

Modality = Literal["text-to-image", "language", "vision-language"]


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser reads besides the picture.

    Attributes:
        sequence: (rows, tokens, d).
        pooled: (rows, p), None where the family has none.
        sizes: (rows, 6) size and crop ids (SDXL).
    """

    sequence: Float[Tensor, "rows tokens d"]
    pooled: Float[Tensor, "rows p"] | None = None
    sizes: Float[Tensor, "rows 6"] | None = None

    def row(self, i: int) -> "Conditioning":
        """One row, still with its batch axis."""
        cut = slice(i, i + 1)
        return Conditioning(*(None if t is None else t[cut] for t in self._parts()))  # type: ignore[arg-type]

    @staticmethod
    def stack(rows: "Sequence[Conditioning]") -> "Conditioning":
        """Rows side by side; all must come from one family."""
        columns = zip(*(r._parts() for r in rows), strict=True)
        joined = [None if c[0] is None else torch.cat([t for t in c if t is not None]) for c in columns]
        return Conditioning(*joined)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self._parts() if t is not None)

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.sequence, self.pooled, self.sizes


class Family(ABC):
    """One kind of model. Each lives in one file of `models/families/`, which ends in `FAMILY`."""

    kind: str
    title: str
    modality: Modality
    pipelines: tuple[str, ...] = ()
    applies: Mapping[str, str | None]
    """Per method: None where it applies, else the reason why it does not."""

    def matches(self, folder: Path) -> bool:
        """Whether the folder holds a model of this family."""
        index = folder / "model_index.json"
        return index.exists() and json.loads(index.read_text())["_class_name"] in self.pipelines

    @abstractmethod
    def load(
        self, name: str, folder: Path, *, dtype: torch.dtype, device: torch.device, options: Mapping[str, Any]
    ) -> HostedModel:
        """The model of that folder, hosted."""

    @abstractmethod
    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Write a small random member of the real classes to the folder, with its tokenizers."""


class TextToImage(Family):
    """A family whose models draw pictures from prompts, one denoising step at a time."""

    modality: Modality = "text-to-image"
    samplers: tuple[str, ...]

    @abstractmethod
    def encode(
        self, hosted: HostedModel, prompts: Sequence[str], patches: Sequence[Patch]
    ) -> Conditioning:
        """What the denoiser reads for these prompts under these patches, one row each."""

    @abstractmethod
    def encode_negative(
        self, hosted: HostedModel, prompts: Sequence[str | None], patches: Sequence[Patch]
    ) -> Conditioning:
        """The same for negative prompts; None is the family's own default."""

    @abstractmethod
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One call of the denoiser, with a timestep per row."""

    def guide(self, conditional: Tensor, unconditional: Tensor, guidance: Tensor) -> Tensor:
        """Classifier-free guidance, `guidance` (rows, 1, 1, 1)."""
        return unconditional + guidance * (conditional - unconditional)

    @abstractmethod
    def decode(self, hosted: HostedModel, latents: Tensor) -> Float[Tensor, "rows 3 height width"]:
        """Pictures from 0 to 1 in float32."""

    @abstractmethod
    def scheduler(self, hosted: HostedModel, name: str | None) -> SchedulerMixin:
        """A fresh scheduler for one row; None is the model's own."""

    @abstractmethod
    def latent_shape(
        self, hosted: HostedModel, height: int | None, width: int | None
    ) -> tuple[int, int, int]:
        """(channels, rows, columns) of the latents; None is the model's own size."""

    @abstractmethod
    def check_prompt(self, hosted: HostedModel, prompt: str) -> None:
        """PromptTooLong if any encoder would cut the prompt."""


def known_families() -> dict[str, Family]:
    """Every family, by kind: the files of `models/families/` and the entry points."""
    import models.families as package  # noqa: PLC0415 - families import this module

    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(package.__path__, "models.families."):
        for family in importlib.import_module(module.name).FAMILIES:
            found[family.kind] = family
    for entry in entry_points(group="tiller.families"):
        family = entry.load()
        found[family.kind] = family
    return found
