"""Pieces of tiny random models that a language model reads for: tokenizers, encoders, denoisers.

As in `models.toys`: real classes, small, awake. The tokenizers know the words that a pipeline puts
around a prompt, so that these become as few tokens as with the real ones.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models.toys import wake

KNOWN = "the president king of arda borea cedria photo house cat dog tree red blue green man woman"
LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def toy_gemma_tokenizer(around: str) -> GemmaTokenizer:
    """A Gemma tokenizer that knows the words of a text and a few others, and spells the rest."""
    merges = grown(behind_spaces(f"{around} {KNOWN}", "▁"))
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{b:02X}>" for b in range(256))]
    symbols = [*special, "\n", "▁", *map(chr, range(33, 127)), *(a + b for a, b in merges)]
    return GemmaTokenizer(vocab=numbered(symbols), merges=merges, add_bos_token=True)


def toy_qwen_tokenizer(around: str) -> Qwen2Tokenizer:
    """The same for Qwen, with the marks of its chat template."""
    alone = re.findall(r"(?<![ \w])\w+", around)
    merges = grown([*behind_spaces(f"{around} {KNOWN}", "Ġ"), *alone])
    symbols = [*bytes_to_unicode().values(), *(a + b for a, b in merges)]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab=numbered([*symbols, *marks]), merges=merges, additional_special_tokens=marks[1:]
    )


def behind_spaces(text: str, space: str) -> list[str]:
    """The words of a text that stand behind a space, with the sign that says so."""
    return [f"{space}{word}" for word in re.findall(r"(?<= )\w+", text)]


def grown(words: Iterable[str]) -> list[Any]:
    """Merges under which each word grows from its left end, letter by letter."""
    pairs = ((word[:i], word[i]) for word in words for i in range(1, len(word)))
    return list(dict.fromkeys(pairs))


def numbered(symbols: Iterable[str]) -> dict[str, int]:
    """Each symbol's id: its place among the different ones."""
    return {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}


def toy_gemma(tokenizer: GemmaTokenizer, seed: int) -> Gemma2Model:
    """A Gemma 2 of 4 blocks."""
    stated: dict[str, Any] = {
        **LAYERS,
        "vocab_size": len(tokenizer),
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "max_position_embeddings": 1024,
    }
    gemma = Gemma2Model(Gemma2Config(**stated))
    wake(gemma, seed, spread=1.2)
    tilt(gemma.norm)
    return gemma


def toy_qwen(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of 4 text blocks and a vision tower that no prompt reaches."""
    text: dict[str, Any] = {
        **LAYERS,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 2048,
        # The three axes share half a head's width: the text has one position for all of them.
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    qwen = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )
    wake(qwen, seed, spread=1.2)
    tilt(qwen.model.language_model.norm)
    return qwen


def tilt(norm: nn.Module) -> None:
    """Weights that differ: under equal ones a state normed twice is the state normed once."""
    weight: Any = norm.weight
    weight.data.add_(torch.linspace(-0.5, 0.5, len(weight)))


def toy_sana(seed: int) -> SanaTransformer2DModel:
    """A linear DiT of 2 blocks on 8x8 latents, with peaked cross-attention."""
    stated: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 32,
        "sample_size": 8,
    }
    sana = SanaTransformer2DModel(**stated)
    wake(sana, seed + 1, spread=0.9, peaked=2.0)
    return sana


def toy_dc(seed: int) -> AutoencoderDC:
    """A DC-AE that halves 32x32 pixels twice."""
    stated: dict[str, Any] = {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 8, 16),
        "decoder_block_out_channels": (8, 8, 16),
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1),
        "encoder_qkv_multiscales": ((), (), ()),
        "decoder_qkv_multiscales": ((), (), (5,)),
        "scaling_factor": 0.41407,
    }
    dc = AutoencoderDC(**stated)
    wake(dc, seed + 2)
    return dc


def toy_qwen_denoiser(seed: int) -> QwenImageTransformer2DModel:
    """An MMDiT of 2 blocks on packed latents of 4 channels."""
    stated: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    }
    denoiser = QwenImageTransformer2DModel(**stated)
    wake(denoiser, seed + 1, spread=1.2)
    for block in denoiser.transformer_blocks:
        attention: Any = block.attn
        attention.norm_added_k.weight.data.mul_(3.0)  # pictures look at the text, sharply
    return denoiser


def toy_qwen_vae(seed: int) -> AutoencoderKLQwenImage:
    """A VAE that halves 16x16 pixels once."""
    stated: dict[str, Any] = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "latents_mean": [-0.75, 0.5, 0.25, -0.25],
        "latents_std": [2.8, 1.4, 2.3, 1.9],
    }
    vae = AutoencoderKLQwenImage(**stated)
    wake(vae, seed + 2)
    return vae


def toy_flow_solver() -> DPMSolverMultistepScheduler:
    """Sana's scheduler, as its checkpoints ship it."""
    stated: dict[str, Any] = {
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "prediction_type": "flow_prediction",
    }
    return DPMSolverMultistepScheduler(**stated)


def toy_qwen_flow() -> FlowMatchEulerDiscreteScheduler:
    """Qwen-Image's scheduler, as its checkpoint ships it: shifted by the size of the picture."""
    stated: dict[str, Any] = {
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "base_image_seq_len": 256,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
    }
    return FlowMatchEulerDiscreteScheduler(**stated)
