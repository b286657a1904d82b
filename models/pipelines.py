"""What diffusers pipelines share: text encoders, one denoiser, perhaps a VAE, a scheduler a row."""

import copy
import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from jaxtyping import Float
from torch import Tensor, nn

from models.cross_attention import remember_texts
from models.errors import BadSize, NotSafetensors, UnknownSampler, UnsupportedFamily
from models.family import Beside, LoadOptions, TextToImage
from models.fingerprint import canonical, fingerprint, joined
from models.hosted import HostedModel
from models.patch import Detour, Exit, Operation, Patch
from models.text_tower import TextTower

_CLASSES: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "flow_euler": FlowMatchEulerDiscreteScheduler,
    "lcm": LCMScheduler,
    "pndm": PNDMScheduler,
}
# What one sampler would silently inherit from another's configuration is stated here.
_STATED: dict[str, dict[str, Any]] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "dpmpp_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2, "steps_offset": 1},
    "euler": {"steps_offset": 1},
    "lcm": {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0},
    "pndm": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
}


class Pipeline(TextToImage):
    """The common part of every family that diffusers has a pipeline for."""

    pipeline: type[Any]
    towers: Mapping[str, str]
    """Text encoder attribute -> the tower's name in stream sites."""
    denoiser: str
    """The attribute of what denoises: `unet`, `transformer`."""
    coder: str | None = "vae"
    """The attribute of what turns latents into pictures; None where the denoiser draws pixels."""
    stated: Mapping[str, Mapping[str, Any]] = _STATED
    """Per sampler what it shall not inherit from the configuration of the model's own."""

    @abstractmethod
    def blocks(self, encoder: Any) -> nn.ModuleList:
        """The blocks of a text encoder, in the order in which they run."""

    def load(self, name: str, folder: Path, options: LoadOptions) -> HostedModel:
        """Host the pipeline of the folder.

        Raises:
            UnsupportedFamily: A part that its pipeline may lack is not there.
            NotSafetensors: A part has pickled weights only.
            WrongBase: The full CLIP beside it has another text tower.
        """
        parts = [a for a in (*self.towers, self.denoiser, self.coder) if a is not None]
        self._check_parts(folder, parts)
        dtypes = {self.denoiser: options.denoises_in, "default": options.dtype}
        pipeline = self.pipeline.from_pretrained(
            folder, dtype=dtypes, use_safetensors=True, **self.left_out()
        )
        # In float16 the VAE overflows; casting it inside the call would be a race between requests.
        if options.dtype == torch.float16 and self.coder is not None:
            getattr(pipeline, self.coder).to(torch.float32)
        modules = {a: getattr(pipeline, a) for a in parts}
        text_towers, clip = self.text_towers(name, folder, pipeline, options)
        for module in (*modules.values(), *([clip] if clip is not None else [])):
            module.to(options.device)
        self._lay_out(modules, options)
        prints = {a: fingerprint(folder / a, options.cache) for a in self.towers}
        return HostedModel(
            name=name,
            family=self,
            fingerprint=joined(prints),
            path=folder,
            dtype=options.dtype,
            device=options.device,
            modules=modules,
            parts={
                "schedulers": self._templates(pipeline),
                "denoiser_dtype": options.denoises_in,
                **self.kept(pipeline),
            },
            text_towers=text_towers,
            clip=clip,
            towers={tower: self.blocks(modules[a]) for a, tower in self.towers.items()},
            linears={p: m for a in self.towers for p, m in _linears(a, modules[a]).items()},
            defaults=options.defaults,
            reread=lambda: joined({a: fingerprint(folder / a) for a in self.towers}),
        )

    def _lay_out(self, modules: Mapping[str, Any], options: LoadOptions) -> None:
        """Convolutions in the layout in which they are fastest, texts projected once a batch.

        On a CPU a denoiser of bfloat16 is faster as it is saved; all others with channels last.
        """
        remember_texts(modules[self.denoiser])
        if self.coder is not None:
            _channels_last(modules[self.coder])
        if options.denoises_in == torch.float32 or options.device.type != "cpu":
            _channels_last(modules[self.denoiser])

    def denoiser_dtype(self, hosted: HostedModel) -> torch.dtype:
        """As it was loaded."""
        return hosted.parts["denoiser_dtype"]

    def _check_parts(self, folder: Path, parts: Sequence[str]) -> None:
        index = folder / "model_index.json"
        stated = json.loads(index.read_text()) if index.exists() else dict.fromkeys(parts, "?")
        for part in parts:
            if not any(stated.get(part) or ()):
                whole = f"{self.title} saved with its {part}"
                raise UnsupportedFamily(f"{self.title} without its {part}", whole)
            if not any((folder / part).glob("*.safetensors")):
                raise NotSafetensors(str(folder / part))

    def left_out(self) -> dict[str, Any]:
        """Components of the pipeline that are not loaded."""
        return {}

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """Whatever else of the pipeline its steps need: tokenizers, scales."""
        return {"scale": pipeline.vae_scale_factor}

    def text_towers(
        self,
        name: str,  # noqa: ARG002 - a family with CLIP towers checks the full CLIP beside them
        folder: Path,  # noqa: ARG002
        pipeline: Any,  # noqa: ARG002
        options: LoadOptions,  # noqa: ARG002
    ) -> tuple[dict[str, TextTower], Any]:
        """CLIP text encoders by attribute in which facts can be edited, and the full CLIP."""
        return {}, None

    def stream_width(self, hosted: HostedModel, tower: str) -> int:
        """The encoder's hidden size."""
        attribute = next(a for a, t in self.towers.items() if t == tower)
        config = hosted.modules[attribute].config
        return int(getattr(config, "text_config", config).hidden_size)

    @torch.inference_mode()
    def decode(self, hosted: HostedModel, latents: Tensor) -> Float[Tensor, "rows 3 height width"]:
        """Through the VAE; pictures from 0 to 1 in float32."""
        vae = hosted.modules[self.coder or ""]
        images = vae.decode(unscaled(latents.to(vae.dtype), vae.config)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def scheduler(self, hosted: HostedModel, name: str | None) -> Any:
        """A fresh scheduler for one row; UnknownSampler for others than `samplers`."""
        templates = hosted.parts["schedulers"]
        if name not in templates:
            raise UnknownSampler(str(name), ", ".join(self.samplers))
        return copy.deepcopy(templates[name])

    def latent_shape(self, hosted: HostedModel, height: int, width: int) -> tuple[int, int, int]:
        """BadSize unless the denoiser can cut or halve the sides as often as it wants to."""
        scale, multiple = hosted.parts["scale"], self.multiple(hosted)
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise BadSize(height, width, multiple)
        return self.channels(hosted), height // scale, width // scale

    def multiple(self, hosted: HostedModel) -> int:
        """Sides of a picture are multiples of so many pixels."""
        return int(hosted.parts["scale"])

    def channels(self, hosted: HostedModel) -> int:
        """Channels of the latents."""
        return int(hosted.modules[self.denoiser].config.in_channels)

    def default_size(self, hosted: HostedModel) -> tuple[int, int]:
        """The denoiser's sample size in pixels."""
        size, scale = hosted.modules[self.denoiser].config.sample_size, hosted.parts["scale"]
        rows, columns = (size, size) if isinstance(size, int) else size
        return rows * scale, columns * scale

    def _templates(self, pipeline: Any) -> dict[str | None, Any]:
        """One scheduler per sampler, and the model's own under None."""
        config = dict(pipeline.scheduler.config)
        found: dict[str | None, Any] = {None: pipeline.scheduler}
        for name in self.samplers:
            kind = _CLASSES[name]
            known = inspect.signature(kind).parameters
            accepted = {k: v for k, v in config.items() if k in known}
            found[name] = kind.from_config(accepted, **self.stated.get(name, {}))
        return found


def _channels_last(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def within(patch: Patch, encoder: str, tower: str) -> Patch:
    """What of a patch happens in one text encoder: at its linear layers, and in its tower."""
    own = (encoder, tower)
    return Patch(tuple(o for o in patch if _part(o) in own))


def _part(operation: Operation) -> str:
    if isinstance(operation, Exit | Detour):
        return operation.tower
    return operation.site.partition(".")[0]


def leaving(patch: Patch) -> frozenset[str]:
    """The towers that a row leaves early."""
    return frozenset(o.tower for o in patch if isinstance(o, Exit))


def read_by(
    tower: str, prompts: Sequence[str], patches: Sequence[Patch], beside: Sequence[Beside]
) -> list[str]:
    """What one encoder reads per row: the prompt, or nothing where another tower is looked at.

    A tower's name that no row can leave ("") gives what the paths outside all towers read.
    """
    found = []
    for row, (prompt, patch) in enumerate(zip(prompts, patches, strict=True)):
        left = leaving(patch)
        blank = left and tower not in left and (not beside or beside[row] == "blank")
        found.append("" if blank else prompt)
    return found


def replaced(
    vectors: Float[Tensor, "rows p"], rows: Sequence[int], others: Float[Tensor, "some p"]
) -> Float[Tensor, "rows p"]:
    """The same with other vectors in some rows; the others keep their bits."""
    return vectors.index_copy(0, torch.tensor(rows, device=vectors.device), others)


def blanked(prompts: Sequence[str | None]) -> list[str]:
    """A text for every row; None is the empty one."""
    return [prompt or "" for prompt in prompts]


def unscaled(latents: Tensor, config: Any) -> Tensor:
    """Latents as the VAE reads them, whichever way its configuration scales and shifts them."""
    mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and spread is not None:
        shape = (1, -1, 1, 1)
        mean, spread = (torch.tensor(v).view(shape).to(latents) for v in (mean, spread))
        return latents * spread / config.scaling_factor + mean
    return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)


def dynamic_shift(config: Any, tokens: int) -> float:
    """How far a flow's schedule is shifted for a picture of so many tokens, as the library does."""
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - least) / (last - first)
    return tokens * slope + (least - slope * first)


def _linears(attribute: str, module: nn.Module) -> dict[str, nn.Module]:
    """The text encoder's linear layers under their historic paths."""
    named = ((n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear))
    return {f"{attribute}.{canonical(name)}": layer for name, layer in named}
