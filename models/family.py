"""What a family is: a loader, a table of places, a toy, and what applies to it."""

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.errors import BadLayer, MethodNotApplicable, PromptTooLong, UnknownTower
from models.hosted import HostedModel
from models.method import modules_of
from models.patch import Exit, Patch

Modality = Literal["text-to-image", "language", "vision-language"]


Beside = Literal["blank", "full"]
"""What the paths beside a tower that a row leaves early say: the empty prompt, or the whole one.

Pooled vectors and other encoders would carry the full prompt around the layer that is looked at."""


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser reads besides the picture.

    Attributes:
        sequence: (rows, tokens, d).
        pooled: (rows, p), None where the family has none.
        sizes: (rows, 6) size and crop ids (SDXL).
        mask: (rows, tokens), 1 where the denoiser may look; None where it looks everywhere.
        guidance: (rows,) a guidance scale that the denoiser itself reads (distilled models).
    """

    sequence: Float[Tensor, "rows tokens d"]
    pooled: Float[Tensor, "rows p"] | None = None
    sizes: Float[Tensor, "rows 6"] | None = None
    mask: Int[Tensor, "rows tokens"] | None = None
    guidance: Float[Tensor, " rows"] | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same with every part changed alike."""
        return Conditioning(*(None if p is None else change(p) for p in self.parts))  # type: ignore[arg-type]

    def row(self, i: int) -> "Conditioning":
        """One row, still with its batch axis."""
        return self.each(lambda part: part[i : i + 1])

    @staticmethod
    def stack(rows: "Sequence[Conditioning]") -> "Conditioning":
        """Rows side by side; ValueError unless all come from one family."""
        columns = zip(*(row.parts for row in rows), strict=True)
        return Conditioning(*(_stacked(column) for column in columns))  # type: ignore[arg-type]

    @property
    def layout(self) -> tuple[tuple[int, ...] | None, ...]:
        """The shape of one row of each part: rows of one layout can share a batch."""
        return tuple(None if part is None else tuple(part.shape[1:]) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.parts if t is not None)

    @property
    def parts(self) -> tuple[Tensor | None, ...]:
        """All parts, in the order of the fields."""
        return self.sequence, self.pooled, self.sizes, self.mask, self.guidance


def _stacked(parts: "Sequence[Tensor | None]") -> Tensor | None:
    there = [part for part in parts if part is not None]
    if there and len(there) < len(parts):
        raise ValueError("Rows of different layouts cannot share a batch.")
    return torch.cat(there) if there else None


@dataclass(frozen=True, kw_only=True)
class Lens:
    """How the Diffusion Lens looks into one tower (Toker et al. 2024, section 3).

    Attributes:
        tower: Its name in stream sites.
        ordinary: The layer that the pipeline itself reads, in the count of `hidden_states`: 0 is
            what enters block 0, l what leaves block l - 1.
        norm: What the pipeline does to that state: its final norm, or nothing.
        beside: The other paths on which a prompt reaches the denoiser.
    """

    tower: str
    ordinary: int
    norm: Literal["final norm", "none"]
    beside: tuple[str, ...] = ()

    def exit(self, layer: int) -> Patch:
        """The patch under which the encoder says what it knows at that layer.

        Raises:
            BadLayer: There is no such layer, or the pipeline does not read it.
        """
        if not 0 <= layer <= self.ordinary:
            raise BadLayer(layer, self.ordinary, self.tower)
        if layer == self.ordinary:
            return Patch()
        return Patch((Exit(tower=self.tower, after=layer - 1 if layer else None),))


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        dtype: Of weights and activations.
        device: Where they live.
        denoiser_dtype: Of the denoiser alone; None is `dtype`.
        projection: A full CLIP whose text tower is the pipeline's, or None.
        cache: A folder for fingerprints, or None.
        defaults: What the model's `tiller.json` states.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    projection: Path | None = None
    cache: Path | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    denoiser_dtype: torch.dtype | None = None

    @property
    def denoises_in(self) -> torch.dtype:
        """What the denoiser computes in."""
        return self.denoiser_dtype or self.dtype


class Family(ABC):
    """One kind of model. Each lives in one file of `models/families/`, which ends in `FAMILY`."""

    kind: str
    title: str
    modality: Modality
    pipelines: tuple[str, ...] = ()
    applies: Mapping[str, str | None]
    """Per method: None where it applies, else the reason why it does not."""
    mixes: bool = False
    """Whether a denoiser of it can compute in another dtype than all other parts."""

    def matches(self, folder: Path) -> bool:
        """Whether the folder holds a model of this family."""
        index = folder / "model_index.json"
        return index.exists() and json.loads(index.read_text())["_class_name"] in self.pipelines

    def check_method(self, method: str) -> None:
        """MethodNotApplicable, with the reason, unless the method applies to this family."""
        reason = self.applies.get(method, "nobody has said how it would work here.")
        if reason is not None:
            raise MethodNotApplicable(method, self.title, reason)

    @abstractmethod
    def load(self, name: str, folder: Path, options: LoadOptions) -> HostedModel:
        """The model of that folder, hosted."""

    @abstractmethod
    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Write a small random member of the real classes to the folder, with its tokenizers."""

    @abstractmethod
    def stream_width(self, hosted: HostedModel, tower: str) -> int:
        """The width of a tower's residual stream."""


class TextToImage(Family):
    """A family whose models draw pictures from prompts, one denoising step at a time."""

    modality: Modality = "text-to-image"
    samplers: tuple[str, ...]
    """Samplers whose pictures equal the stock pipeline's."""
    default_steps: int
    """Denoising steps that the stock pipeline takes when nobody says."""
    default_guidance: float
    """Its guidance scale when nobody says."""

    @abstractmethod
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),
    ) -> Conditioning:
        """What the denoiser reads for these prompts under these patches, one row each.

        `beside` says per row what other paths carry where the row leaves a tower early; left out,
        they are blank.
        """

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

    def lens(self, hosted: HostedModel, tower: str | None = None) -> Lens:
        """How the lens looks into a tower; None is the first that can be looked at.

        Raises:
            MethodNotApplicable: The lens is not defined there, with the reason.
            UnknownTower: The model has no such text encoder.
        """
        self.check_method("diffusion_lens")
        lenses = self.lenses(hosted)
        seen = (t for t, lens in lenses.items() if isinstance(lens, Lens))
        name = next(seen, next(iter(lenses))) if tower is None else tower
        if name not in lenses:
            raise UnknownTower(name, ", ".join(lenses))
        found = lenses[name]
        if isinstance(found, str):
            raise MethodNotApplicable("diffusion_lens", f"{name} of {self.title}", found)
        return found

    def lenses(self, hosted: HostedModel) -> Mapping[str, Lens | str]:  # noqa: ARG002
        """Per text encoder how the lens looks into it, or the reason why it cannot."""
        return {}

    def is_guided(self, guidance: float) -> bool:
        """Whether a row of this scale needs a negative beside it."""
        return guidance > 1

    def with_guidance(
        self,
        hosted: HostedModel,  # noqa: ARG002 - a distilled family asks its denoiser
        conditioning: Conditioning,
        guidance: float,  # noqa: ARG002
    ) -> Conditioning:
        """What the row reads at this scale; only distilled denoisers read the scale itself."""
        return conditioning

    def set_timesteps(
        self,
        hosted: HostedModel,  # noqa: ARG002 - a flow's schedule depends on the model and the size
        scheduler: Any,
        steps: int,
        shape: tuple[int, int, int],  # noqa: ARG002
    ) -> None:
        """Set a row's fresh scheduler to so many steps for latents of that shape."""
        scheduler.set_timesteps(steps)

    def denoiser_dtype(self, hosted: HostedModel) -> torch.dtype:
        """What the denoiser computes in, and in which `encode` gives what it reads."""
        return hosted.dtype

    def latents_dtype(self, hosted: HostedModel) -> torch.dtype:
        """Of a row's latents between its steps; most pipelines keep them as the model computes."""
        return hosted.dtype

    def reading_key(self, hosted: HostedModel, text: str) -> str:  # noqa: ARG002
        """What of a text an embedding depends on: the text itself, or the ids it becomes."""
        return f"text:{text}"

    def guide(self, conditional: Tensor, unconditional: Tensor, guidance: Tensor) -> Tensor:
        """Classifier-free guidance, `guidance` (rows, 1, 1, 1) or one number for all rows."""
        return unconditional + (conditional - unconditional) * guidance

    @abstractmethod
    def decode(self, hosted: HostedModel, latents: Tensor) -> Float[Tensor, "rows 3 height width"]:
        """Pictures from 0 to 1 in float32."""

    @abstractmethod
    def scheduler(self, hosted: HostedModel, name: str | None) -> Any:
        """A fresh scheduler for one row; None is the model's own."""

    @abstractmethod
    def latent_shape(self, hosted: HostedModel, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of the latents; BadSize for sizes that cannot be drawn."""

    @abstractmethod
    def default_size(self, hosted: HostedModel) -> tuple[int, int]:
        """(height, width) in pixels that the model was made for."""

    @abstractmethod
    def token_count(self, hosted: HostedModel, prompt: str) -> int:
        """Tokens of the prompt, [BOS] and [EOS] included; the most that any encoder counts."""

    @abstractmethod
    def prompt_limit(self, hosted: HostedModel) -> int:
        """The most tokens that all encoders read, [BOS] and [EOS] included."""

    def check_negative(self, hosted: HostedModel, prompt: str | None) -> None:
        """Refuse a negative prompt that would be cut, or that nothing would read."""
        if prompt:
            self.check_prompt(hosted, prompt)

    def check_prompt(self, hosted: HostedModel, prompt: str) -> None:
        """PromptTooLong if any encoder would cut the prompt."""
        tokens, limit = self.token_count(hosted, prompt), self.prompt_limit(hosted)
        if tokens > limit:
            raise PromptTooLong(tokens - 2, limit - 2)


class Known(Mapping[str, Family]):
    """Every family by kind, looked up at the first use: a family's file imports this module."""

    @cached_property
    def _found(self) -> dict[str, Family]:
        package = importlib.import_module("models.families")
        families = [module.FAMILY for module in modules_of(package)]
        families += [entry.load() for entry in entry_points(group="tiller.families")]
        return {family.kind: family for family in families}

    def __getitem__(self, kind: str) -> Family:
        return self._found[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


FAMILIES: Mapping[str, Family] = Known()
