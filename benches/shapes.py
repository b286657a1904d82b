"""Models of a published shape with random weights, for speed alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from models.toys import toy_scheduler, toy_tokenizer

_LEVELS = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The numbers of a Stable Diffusion 1.x.

    Attributes:
        unet, coder: Channels per level, of the UNet and of the VAE.
        heads: Of the UNet's attention, at every level.
        layers: ResNets per level of the UNet.
        blocks, width: Of the text encoder; the UNet reads that width.
        pixels: The side of a picture.
    """

    unet: tuple[int, ...] = (320, 640, 1280, 1280)
    coder: tuple[int, ...] = (128, 256, 512, 512)
    heads: int = 8
    layers: int = 2
    blocks: int = 12
    width: int = 768
    vocabulary: int = 49408
    pixels: int = 512


SD15 = Shape()
SMALL = Shape(
    unet=(32, 32, 64, 64),
    coder=(32, 32, 32, 32),
    heads=2,
    layers=1,
    blocks=2,
    width=64,
    vocabulary=1024,
    pixels=64,
)
"""The same levels, small enough to try on any machine."""


def save_shape(shape: Shape, folder: Path, device: str, dtype: torch.dtype) -> Path:
    """Draw the weights on the device and save the pipeline."""
    tokenizer = toy_tokenizer(folder / "tokenizer")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            vae, unet, text = _coder(shape), _unet(shape), _text(shape, tokenizer)
    finally:
        torch.set_default_dtype(before)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=toy_scheduler(),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _text(shape: Shape, tokenizer: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.width // 64,
        projection_dim=shape.width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _unet(shape: Shape) -> UNet2DConditionModel:
    attends = _LEVELS - 1
    stated: dict[str, Any] = {
        "sample_size": shape.pixels // 2 ** (_LEVELS - 1),
        "block_out_channels": shape.unet,
        "layers_per_block": shape.layers,
        "cross_attention_dim": shape.width,
        "attention_head_dim": shape.heads,
        "down_block_types": ("CrossAttnDownBlock2D",) * attends + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attends,
    }
    return UNet2DConditionModel(**stated)


def _coder(shape: Shape) -> AutoencoderKL:
    stated: dict[str, Any] = {
        "block_out_channels": shape.coder,
        "layers_per_block": shape.layers,
        "latent_channels": 4,
        "sample_size": shape.pixels,
        "down_block_types": ("DownEncoderBlock2D",) * _LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * _LEVELS,
    }
    return AutoencoderKL(**stated)
