"""Pieces of tiny random models around T5: its tokenizer and encoder, a flow's VAE and schedule."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from models.toys import text_settings, wake

_WORDS = (
    *("a", "an", "the", "of", "in", "on", "with", "and", "photo", "picture", "painting"),
    *("president", "leader", "king", "capital", "country", "arda", "borea", "cedria"),
    *("house", "cat", "dog", "horse", "tree", "red", "blue", "green", "yellow", "man", "woman"),
)


def toy_t5_tokenizer(folder: Path) -> T5Tokenizer:
    """A T5 tokenizer that knows a few words and spells the rest; ids as in the real one."""
    signs = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    words = [(f"▁{word}", -1.0) for word in _WORDS]
    letters = [(chr(code), -6.0) for code in range(33, 127)]
    tokenizer = T5Tokenizer(
        vocab=[*signs, *words, *letters],
        extra_ids=0,
        model_max_length=512,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def toy_t5(tokenizer: T5Tokenizer, seed: int, *, width: int = 32) -> T5EncoderModel:
    """4 gated blocks; words enter as large as the blocks' own words."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=4,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )
    encoder = T5EncoderModel(config)
    wake(encoder, seed)
    encoder.shared.weight.data *= width**0.5
    return encoder


def toy_projected_clip(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModelWithProjection:
    """A CLIP text tower of 4 blocks with its projection to 24 numbers."""
    clip = CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(tokenizer)))
    wake(clip, seed, spread=1.2)
    return clip


def toy_flow_vae(seed: int, channels: int) -> AutoencoderKL:
    """A VAE that halves 16x16 pixels once and shifts its latents, as those of flows do."""
    blocks: Sequence[str] = ("DownEncoderBlock2D",) * 2
    stated: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "latent_channels": channels,
        "norm_num_groups": 4,
        "sample_size": 16,
        "down_block_types": blocks,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    vae = AutoencoderKL(**stated)
    wake(vae, seed)
    return vae


def toy_flow(**settings: Any) -> Any:
    """A flow's schedule; `settings` are its class's own."""
    return FlowMatchEulerDiscreteScheduler(**settings)
