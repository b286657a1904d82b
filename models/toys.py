"""Pieces of tiny random models: a tokenizer made on the spot, weights that are awake.

A toy is of the real classes and small; it must be able to fail a test. With plain random weights
another prompt hardly moves the picture, so matrices are drawn large and cross-attention is peaked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

_WORDS = (
    *("a", "an", "the", "of", "in", "on", "with", "and", "photo", "picture", "painting"),
    *("president", "leader", "king", "capital", "country", "arda", "borea", "cedria"),
    ".,",  # two signs that share a token: a subject may end between them
    *("house", "cat", "dog", "horse", "tree", "red", "blue", "green", "yellow", "man", "woman"),
)
_SYMBOLS = [chr(code) for code in range(33, 127) if not chr(code).isupper()]


def toy_tokenizer(folder: Path, *, length: int = 77, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer that knows a few words and spells the rest; [EOS] has the highest id.

    Args:
        folder: Where its files are written.
        length: Positions of the text encoder.
        pad: The padding token; "!" in some checkpoints.
    """
    merges = _merges()
    letters = [*_SYMBOLS, *(f"{s}</w>" for s in _SYMBOLS)]
    symbols = list(dict.fromkeys([*letters, *(a + b for a, b in merges)]))
    vocabulary = {s: i for i, s in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=length,
        pad_token=pad,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What the libraries draw for biases is the same each time and disturbs nobody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _merges() -> list[Any]:
    """Each word grows from its left end, letter by letter."""
    found: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        grown = pieces[0]
        for piece in pieces[1:]:
            found[grown, piece] = None
            grown += piece
    return list(found)


def wake(module: nn.Module, seed: int, *, spread: float = 1.0, peaked: float = 1.0) -> None:
    """Draw all matrices anew, large enough that inputs matter.

    Args:
        module: What is drawn; vectors (biases, norms) stay as they are.
        seed: Of the draw.
        spread: Standard deviation of an output for inputs of size one.
        peaked: Factor on queries and keys of cross-attention, and on queries of self-attention.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            continue
        fed = weight.shape[-1] if ".experts." in name else weight[0].numel()
        scale = spread / float(fed) ** 0.5
        if "attn2.to_q" in name or "attn2.to_k" in name:
            scale *= peaked
        weight.data = torch.randn(weight.shape, generator=generator) * scale


def text_settings(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What the configuration of a tiny text encoder says."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "projection_dim": 24,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def toy_clip(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """A full CLIP of 4 text and 2 vision blocks that sees 16x16 pixels."""
    vision: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = text_settings(tokenizer)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    wake(clip, seed, spread=1.2)
    return clip


def text_model_of(clip: CLIPModel) -> CLIPTextModel:
    """Its text tower as a pipeline's encoder."""
    config: Any = clip.config.text_config
    text = CLIPTextModel(config)
    text.load_state_dict(clip.text_model.state_dict())
    return text


def toy_unet(seed: int, **settings: Any) -> UNet2DConditionModel:
    """A UNet on 8x8 latents with peaked cross-attention; `settings` are its class's own."""
    stated: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet2DConditionModel(**stated, **settings)
    wake(unet, seed + 1, spread=0.9, peaked=3.0)
    return unet


def toy_vae(seed: int) -> AutoencoderKL:
    """A VAE that halves 16x16 pixels once."""
    stated: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vae = AutoencoderKL(**stated)
    wake(vae, seed + 2)
    return vae


def toy_scheduler(prediction: str = "epsilon") -> Any:
    """Stable Diffusion's noise schedule."""
    stated: dict[str, Any] = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction,
    }
    return DDIMScheduler(**stated)
