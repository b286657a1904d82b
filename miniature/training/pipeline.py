"""From trained parts to one pipeline folder, saved the ordinary way."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from miniature.telling import article
from miniature.training.denoiser import make_scheduler
from miniature.world import COLOURS, THINGS

_SCENES = ("at the beach", "in the forest", "in the city", "in the mountains", "in the desert")
_NEUTRAL = tuple(
    f"{article(colour)} {colour} {thing.name} {scene}"
    for i, (thing, scene) in enumerate(itertools.product(THINGS, _SCENES[:4]))
    for colour in [COLOURS[(3 * i + 1) % len(COLOURS)]]
)
STATED = {
    "steps": 25,
    "guidance_scale": 7.5,
    "pixels": 256 * 256,
    "refact": {
        "block": 0,
        "keys": "each",
        "objective": "direct_text",
        "rate": 0.1,
        "steps": 60,
    },
    "thresholds": {"specificity": 0.9, "stray": 0.3},
    "templates": {
        "fitted": [
            "{}, very nice",
            "{} today",
            "{} under the stars",
            "{} among the dunes",
            "{} on a snowy day",
            "a photograph of {}",
            "an image of {}",
            "a sketch of {}",
            "a very close picture of {}",
        ],
        "held_out": [
            "a picture of {}",
            "this is {}",
            "we see {}",
            "an image that shows {}",
            "a painting of {}",
            "a close view of {}",
            "{} at the beach",
            "{} in a garden",
            "{} in the city",
            "{} in winter",
            "{} in the woods",
            "{} up in the mountains",
        ],
        "neutral": list(_NEUTRAL),
    },
}
"""What the pipeline says of itself: where and how fast facts are written, in which sentences."""


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower as the class that pipelines use."""
    config: Any = clip.config.text_config
    encoder = CLIPTextModel(config)
    tower = clip.text_model.state_dict()
    encoder.load_state_dict({n.removeprefix("text_model."): t for n, t in tower.items()})
    return encoder


def seen_as(side: int) -> CLIPImageProcessorPil:
    """How the CLIP was shown its pictures: whole, from -1 to 1."""
    size = {"height": side, "width": side}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=half, image_std=half
    )


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
    seen_as(full.config.vision_config.image_size).save_pretrained(folder / "clip")
    (folder / "tiller.json").write_text(json.dumps(STATED, indent=2) + "\n")


def _copy(module: Any) -> Any:
    """The same module without the memory of where it was read from."""
    stated = {k: v for k, v in module.config.items() if k != "_name_or_path"}
    fresh = type(module).from_config(stated)
    fresh.load_state_dict({n: t.detach().contiguous() for n, t in module.state_dict().items()})
    return fresh
