"""What pipelines with CLIP text encoders share: towers, canonical linears, schedulers, toys."""

import copy
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from models.errors import UnknownSampler, WrongBase
from models.fingerprint import canonical, fingerprint
from models.text_tower import TextTower

_CLASSES: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "lcm": LCMScheduler,
    "pndm": PNDMScheduler,
}
SAMPLERS = tuple(_CLASSES)
_STATED: dict[str, dict[str, Any]] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "dpmpp_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
    "euler": {},
    "lcm": {"clip_sample": False, "set_alpha_to_one": True},
    "pndm": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
}


def schedulers(own: SchedulerMixin) -> dict[str | None, Any]:
    """One template per sampler, and the model's own under None; what a swap inherits is stated."""
    config = dict(own.config)  # type: ignore[attr-defined]
    found: dict[str | None, Any] = {None: type(own).from_config(config)}
    for name, kind in _CLASSES.items():
        found[name] = kind.from_config(config, **_STATED[name])
    return found


def fresh(templates: Mapping[str | None, Any], name: str | None) -> Any:
    """A scheduler of one's own: rows never share one."""
    if name not in templates:
        raise UnknownSampler(str(name), ", ".join(SAMPLERS))
    return copy.deepcopy(templates[name])


def linears_of(attribute: str, module: nn.Module) -> dict[str, nn.Module]:
    """The text encoder's linear layers under their historic paths."""
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            path = name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"
            found[f"{attribute}.{path}"] = layer
    return found


def make_tower(  # noqa: PLR0913 - one constructor call
    attribute: str,
    tower: str,
    module: nn.Module,
    tokenizer: Any,
    reachable: range,
    clip: CLIPModel | None,
) -> TextTower:
    """The tower, with the projection of its own class or of the full CLIP beside it."""
    own = getattr(module, "text_projection", None)
    projection = own.weight if own is not None else None
    if projection is None and clip is not None:
        projection = clip.text_projection.weight
    scale = float(clip.logit_scale.exp()) if clip is not None else None
    return TextTower(
        attribute=attribute,
        tower=tower,
        module=module,
        tokenizer=tokenizer,
        projection=projection,
        reachable=reachable,
        fingerprint=fingerprint({attribute: module}, {}),
        logit_scale=scale,
        lock=threading.Lock(),
    )


def full_clip(
    folder: Path, module: nn.Module, options: Mapping[str, Any], dtype: torch.dtype, name: str
) -> CLIPModel | None:
    """The full CLIP in `clip/` or at `options["projection"]`; its text tower must be the same.

    Raises:
        WrongBase: Its text tower has other weights than the pipeline's encoder.
    """
    where = Path(options["projection"]) if options.get("projection") else folder / "clip"
    if not (where / "config.json").exists():
        return None
    clip = CLIPModel.from_pretrained(where, dtype=dtype, use_safetensors=True)
    ours, theirs = canonical(module.state_dict()), canonical(clip.text_model.state_dict())
    if any(not torch.equal(ours[n], theirs[n]) for n in ours if n in theirs) or not ours.keys() & theirs.keys():
        raise WrongBase(str(where), fingerprint({"t": clip.text_model}, {}), name, fingerprint({"t": module}, {}))
    return clip


def toy_tokenizer(folder: Path, max_length: int = 77) -> CLIPTokenizer:
    """A CLIP tokenizer of single letters and a few merges; EOS has the highest id and pads."""
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    merges = [("t", "h"), ("th", "e</w>"), ("o", "f</w>"), ("a", "r"), ("d", "a</w>"), ("i", "n")]
    symbols = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges)]
    vocabulary = {s: i for i, s in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=max_length,
        pad_token="<|endoftext|>",  # noqa: S106 - a token, not a secret
        unk_token="<|endoftext|>",  # noqa: S106
    )


def wake(module: nn.Module, seed: int, spread: float) -> None:
    """Random weights large enough that prompts matter: fresh toys pass tests vacuously."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            scale = spread / float(weight[0].numel()) ** 0.5
            peaked = 3.0 if "attn2.to_q" in name or "attn2.to_k" in name else 1.0
            weight.data = torch.randn(weight.shape, generator=generator) * scale * peaked


def pictures(images: Tensor) -> Tensor:
    """From -1..1 to 0..1 in float32."""
    return (images.float() / 2 + 0.5).clamp(0, 1)
