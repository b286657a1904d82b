"""What pipelines with CLIP text encoders, a UNet and a VAE share."""

import copy
import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from models.errors import BadSize, NotSafetensors, UnknownSampler, WrongBase
from models.family import Conditioning, LoadOptions, TextToImage
from models.fingerprint import canonical, fingerprint, joined
from models.hosted import HostedModel
from models.plan import Named
from models.text_tower import TextTower, Tokens

_CLASSES: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
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
SAMPLERS = tuple(_CLASSES)


class ClipPipeline(TextToImage):
    """The common part of Stable Diffusion 1.x, 2.x and XL."""

    samplers = SAMPLERS
    towers: Mapping[str, str]
    """Text encoder attribute -> the tower's name in stream sites."""
    pipeline: type[Any]

    @abstractmethod
    def reachable(self, blocks: int) -> range:
        """Blocks of a text encoder whose output can change the picture."""

    def load(self, name: str, folder: Path, options: LoadOptions) -> HostedModel:
        """Host the pipeline of the folder.

        Raises:
            NotSafetensors: A part has pickled weights only.
            WrongBase: The full CLIP beside it has another text tower.
        """
        for part in (*self.towers, "unet", "vae"):
            if not any((folder / part).glob("*.safetensors")):
                raise NotSafetensors(str(folder / part))
        pipeline = self.pipeline.from_pretrained(
            folder, dtype=options.dtype, use_safetensors=True, **self.left_out()
        )
        # In float16 the VAE overflows; casting it inside the call would be a race between requests.
        if options.dtype == torch.float16:
            pipeline.vae.to(torch.float32)
        modules = {a: getattr(pipeline, a) for a in (*self.towers, "unet", "vae")}
        clip = self._full_clip(name, folder, modules["text_encoder"], options)
        for module in (*modules.values(), *([clip] if clip is not None else [])):
            module.to(options.device)
        text_towers = {a: self._tower(a, folder, pipeline, clip, options) for a in self.towers}
        return HostedModel(
            name=name,
            family=self,
            fingerprint=_joined(text_towers),
            path=folder,
            dtype=options.dtype,
            device=options.device,
            modules=modules,
            parts={
                "schedulers": _templates(pipeline),
                "scale": pipeline.vae_scale_factor,
                "zero_negative": pipeline.config.get("force_zeros_for_empty_prompt", False),
            },
            text_towers=text_towers,
            clip=clip,
            towers={tower.tower: tower.blocks for tower in text_towers.values()},
            linears={p: m for a in self.towers for p, m in _linears(a, modules[a]).items()},
            defaults=options.defaults,
            reread=lambda: joined({a: fingerprint(folder / a) for a in self.towers}),
        )

    def left_out(self) -> dict[str, Any]:
        """Components of the pipeline that are not loaded."""
        return {}

    def _tower(
        self, attribute: str, folder: Path, pipeline: Any, clip: Any, options: LoadOptions
    ) -> TextTower:
        module = getattr(pipeline, attribute)
        own = getattr(module, "text_projection", None)
        full = clip if attribute == "text_encoder" else None
        if own is None and full is not None:
            own = full.text_projection
        return TextTower(
            attribute=attribute,
            tower=self.towers[attribute],
            module=module,
            tokenizer=getattr(pipeline, attribute.replace("text_encoder", "tokenizer")),
            projection=None if own is None else own.weight,
            reachable=self.reachable(module.config.num_hidden_layers),
            fingerprint=fingerprint(folder / attribute, options.cache),
            logit_scale=None if full is None else float(full.logit_scale.detach().exp()),
        )

    def _full_clip(self, name: str, folder: Path, encoder: Any, options: LoadOptions) -> Any:
        """The full CLIP beside the pipeline or where the options say; with the same text tower."""
        where = options.projection or folder / "clip"
        if not (where / "config.json").exists():
            return None
        clip = CLIPModel.from_pretrained(where, dtype=options.dtype, use_safetensors=True)
        ours, theirs = _weights(encoder), _weights(clip.text_model)
        if ours.keys() != theirs.keys() or any(
            not torch.equal(t, theirs[n]) for n, t in ours.items()
        ):
            here = fingerprint(folder / "text_encoder", options.cache)
            raise WrongBase(str(where), fingerprint(where, options.cache), name, here)
        clip.text_model = encoder
        return clip

    def stream_width(self, hosted: HostedModel, tower: str) -> int:
        """The encoder's hidden size."""
        return next(t.width for t in hosted.text_towers.values() if t.tower == tower)

    @torch.inference_mode()
    def decode(self, hosted: HostedModel, latents: Tensor) -> Float[Tensor, "rows 3 height width"]:
        """Through the VAE; pictures from 0 to 1 in float32."""
        vae = hosted.modules["vae"]
        images = vae.decode(_unscaled(latents.to(vae.dtype), vae.config)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def scheduler(self, hosted: HostedModel, name: str | None) -> Any:
        """A fresh scheduler for one row; UnknownSampler for others than `samplers`."""
        templates = hosted.parts["schedulers"]
        if name not in templates:
            raise UnknownSampler(str(name), ", ".join(SAMPLERS))
        return copy.deepcopy(templates[name])

    def latent_shape(self, hosted: HostedModel, height: int, width: int) -> tuple[int, int, int]:
        """BadSize unless the UNet can halve the sides as often as it wants to."""
        config, scale = hosted.modules["unet"].config, hosted.parts["scale"]
        multiple = scale * 2 ** (len(config.block_out_channels) - 1)
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise BadSize(height, width, multiple)
        return config.in_channels, height // scale, width // scale

    def default_size(self, hosted: HostedModel) -> tuple[int, int]:
        """The UNet's sample size in pixels."""
        size, scale = hosted.modules["unet"].config.sample_size, hosted.parts["scale"]
        rows, columns = (size, size) if isinstance(size, int) else size
        return rows * scale, columns * scale

    def token_count(self, hosted: HostedModel, prompt: str) -> int:
        """The most that any encoder counts."""
        return max(tower.count(prompt) for tower in hosted.text_towers.values())

    def prompt_limit(self, hosted: HostedModel) -> int:
        """The shortest encoder's positions."""
        return min(tower.max_length for tower in hosted.text_towers.values())


def named_positions(tokens: Tokens) -> list[Named]:
    """What `prompt` and `last` mean in each row: up to [EOS], and [EOS] itself."""
    ends = tokens.eos.tolist()
    return [{"prompt": tuple(range(end + 1)), "last": (end,)} for end in ends]


def blanked(prompts: Sequence[str | None]) -> list[str]:
    """A text for every row; None is the empty one."""
    return [prompt or "" for prompt in prompts]


def zeroed(conditioning: Conditioning, rows: Sequence[int]) -> Conditioning:
    """The same with zeros in some rows: what SDXL reads when no negative prompt is given."""
    index = torch.tensor(rows, dtype=torch.long, device=conditioning.sequence.device)
    pooled = conditioning.pooled
    return Conditioning(
        sequence=conditioning.sequence.index_fill(0, index, 0.0),
        pooled=None if pooled is None else pooled.index_fill(0, index, 0.0),
        sizes=conditioning.sizes,
    )


def _templates(pipeline: Any) -> dict[str | None, Any]:
    """One scheduler per sampler, and the model's own under None."""
    config = dict(pipeline.scheduler.config)
    found: dict[str | None, Any] = {None: pipeline.scheduler}
    for name, kind in _CLASSES.items():
        known = inspect.signature(kind).parameters
        accepted = {k: v for k, v in config.items() if k in known}
        found[name] = kind.from_config(accepted, **_STATED[name])
    return found


def _linears(attribute: str, module: nn.Module) -> dict[str, nn.Module]:
    """The text encoder's linear layers under their historic paths."""
    named = ((n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear))
    return {f"{attribute}.{canonical(name)}": layer for name, layer in named}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A text model's tensors under historic names, without a projection."""
    named = {canonical(name): tensor for name, tensor in module.state_dict().items()}
    return {n: t for n, t in named.items() if n is not None and n.startswith("text_model.")}


def _joined(towers: Mapping[str, TextTower]) -> str:
    return joined({attribute: tower.fingerprint for attribute, tower in towers.items()})


def _unscaled(latents: Tensor, config: Any) -> Tensor:
    mean, spread = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or spread is None:
        return latents / config.scaling_factor
    shape = (1, -1, 1, 1)
    mean, spread = (torch.tensor(v).view(shape).to(latents) for v in (mean, spread))
    return latents * spread / config.scaling_factor + mean
