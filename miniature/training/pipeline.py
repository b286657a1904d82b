"""From trained parts to one pipeline folder, saved the ordinary way."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from miniature.training.denoiser import make_scheduler


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower as the class that pipelines use."""
    config: Any = clip.config.text_config
    encoder = CLIPTextModel(config)
    tower = clip.text_model.state_dict()
    encoder.load_state_dict({n.removeprefix("text_model."): t for n, t in tower.items()})
    return encoder


def save_pipeline(
    folder: Path, clip: CLIPModel, vae: AutoencoderKL, unet: UNet2DConditionModel, words: Path
) -> None:
    """Write a Stable Diffusion pipeline in fp16, and the full CLIP in `clip/`."""
    half = torch.float16
    encoder: Any = text_encoder_of(clip)
    full: Any = CLIPModel(clip.config)
    full.load_state_dict(clip.state_dict())
    kind: Any = StableDiffusionPipeline
    kind(
        vae=_copy(vae).to(half),
        text_encoder=encoder.to(half),
        tokenizer=CLIPTokenizer.from_pretrained(words),
        unet=_copy(unet).to(half, memory_format=torch.contiguous_format),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    full.to(half).save_pretrained(folder / "clip")


def _copy(module: Any) -> Any:
    fresh = type(module).from_config(module.config)
    fresh.load_state_dict({n: t.detach().contiguous() for n, t in module.state_dict().items()})
    return fresh
