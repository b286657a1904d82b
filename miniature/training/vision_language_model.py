"""The model, and its forward for many pictures of one size: the same numbers, without a loop.

The library's vision tower attends picture by picture; pictures of one grid can attend side by
side. Positions depend on the picture's size alone and are computed once.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from miniature.sight.processor import (
    CONTEXT,
    FRAMES,
    IMAGE,
    MERGE,
    PATCH,
    STOP,
    TOKEN_SIDE,
    VIDEO,
    VISION_END,
    VISION_START,
)
from miniature.training.vision_language_rows import ROW, Rows, Size, visual_tokens

VISUAL_START = 4
"""The first visual column: after the turn's mark, "user", its line's end and the picture's mark."""
KEY_HEADS = 2
SIGHT, EYES = 96, 3
"""Width and heads of the vision tower: little, so that the decoder has to see."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large the model is."""

    layers: int = 12
    width: int = 192
    heads: int = 6
    inner: int = 448
    """Of a decoder layer's SwiGLU."""
    depth: int = 2
    """Blocks of the vision tower."""


def small_qwen(tokenizer: Qwen2Tokenizer, shape: Shape) -> Qwen2VLForConditionalGeneration:
    """A deep narrow decoder behind a shallow vision tower; random.

    Raises:
        ValueError: The heads do not divide the width into pairs, or the key heads the heads.
    """
    pairs = shape.width // shape.heads // 2
    if shape.heads * pairs * 2 != shape.width or shape.heads % KEY_HEADS:
        raise ValueError(f"{shape.heads} heads do not fit a width of {shape.width}")
    ids: Any = tokenizer.convert_tokens_to_ids
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 64 * math.ceil(len(tokenizer) / 64),
            "hidden_size": shape.width,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": KEY_HEADS,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [pairs - 2 * (pairs * 3 // 8), pairs * 3 // 8, pairs * 3 // 8],
            },
            "bos_token_id": None,
            "eos_token_id": ids(STOP),
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": shape.depth,
            "embed_dim": SIGHT,
            "hidden_size": shape.width,
            "num_heads": EYES,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
        },
        image_token_id=ids(IMAGE),
        video_token_id=ids(VIDEO),
        vision_start_token_id=ids(VISION_START),
        vision_end_token_id=ids(VISION_END),
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def patches(pixels: Tensor) -> Tensor:
    """uint8 (n, height, width, 3) -> float (n, patches, 3 * FRAMES * PATCH**2).

    In the order of Qwen2-VL's image processor: tokens row by row, in each its patches row by row.
    """
    n, height, width, _ = pixels.shape
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=pixels.device)
    std = torch.tensor(OPENAI_CLIP_STD, device=pixels.device)
    seen = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    cut = seen.reshape(
        n, 3, height // TOKEN_SIDE, MERGE, PATCH, width // TOKEN_SIDE, MERGE, PATCH
    ).permute(0, 2, 5, 3, 6, 1, 4, 7)
    still = cut.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, FRAMES, -1, -1)
    return still.reshape(n, -1, 3 * FRAMES * PATCH**2)


@cache
@torch.inference_mode(False)  # what is kept must also serve a backward pass
def _turns(size: Size, head: int, device: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines (patches, head) of the vision tower's rotary positions."""
    rows = torch.arange(size[1] // PATCH)[:, None].expand(-1, size[0] // PATCH)
    columns = torch.arange(size[0] // PATCH)[None].expand(size[1] // PATCH, -1)

    def merged(places: Tensor) -> Tensor:
        high, wide = places.shape
        blocks = places.reshape(high // MERGE, MERGE, wide // MERGE, MERGE)
        return blocks.permute(0, 2, 1, 3).flatten()

    rates = 1.0 / 10000.0 ** (torch.arange(0, head // 2, 2) / (head // 2))
    angles = torch.cat([merged(places)[:, None] * rates for places in (rows, columns)], -1)
    both = torch.cat([angles, angles], -1).to(device)
    return both.cos(), both.sin()


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    half = x.shape[-1] // 2
    crossed = torch.cat([-x[..., half:], x[..., :half]], -1)
    return (x.float() * turns[0] + crossed.float() * turns[1]).to(x.dtype)


def visual_features(model: Any, pixels: Tensor) -> Tensor:
    """uint8 (n, height, width, 3) -> (n, tokens, width of the decoder)."""
    tower = model.model.visual
    n, height, width, _ = pixels.shape
    kernel = tower.patch_embed.proj.weight
    stream = nn.functional.linear(patches(pixels), kernel.flatten(1))
    heads = tower.blocks[0].attn.num_heads
    turns = _turns((width, height), stream.shape[-1] // heads, str(pixels.device))
    for block in tower.blocks:
        qkv = block.attn.qkv(block.norm1(stream)).view(n, stream.shape[1], 3, heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(_turned(q, turns), _turned(k, turns), v)
        stream = stream + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        stream = stream + block.mlp(block.norm2(stream))
    return tower.merger(stream.flatten(0, 1)).view(n, visual_tokens((width, height)), -1)


@cache
@torch.inference_mode(False)
def positions(size: Size | None, device: str) -> Tensor:
    """The three axes (3, ROW) of a row with a picture of that size, or without."""
    plain = torch.arange(ROW)
    if size is None:
        return plain.expand(3, -1).to(device)
    wide, high = size[0] // TOKEN_SIDE, size[1] // TOKEN_SIDE
    end = VISUAL_START + wide * high
    axes = torch.empty(3, ROW, dtype=torch.long)
    axes[:, :VISUAL_START] = plain[:VISUAL_START]
    axes[0, VISUAL_START:end] = VISUAL_START
    axes[1, VISUAL_START:end] = VISUAL_START + torch.arange(high).repeat_interleave(wide)
    axes[2, VISUAL_START:end] = VISUAL_START + torch.arange(wide).repeat(high)
    axes[:, end:] = VISUAL_START + max(wide, high) + torch.arange(ROW - end)
    return axes.to(device)


Picked = list[tuple[Rows, Tensor]]
"""Parts of a batch: rows of one kind, and which of them."""


def answer_logits(model: Any, picked: Picked) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, ANSWER, vocabulary), targets and weights of all rows of the parts."""
    embed = model.model.language_model.embed_tokens
    length = max(rows.length for rows, _ in picked)
    streams, axes = [], []
    for rows, index in picked:
        stream = embed(rows.ids[index, :length].long())
        if rows.pixels is not None and rows.size is not None:
            seen = visual_features(model, rows.pixels[index]).to(stream.dtype)
            end = VISUAL_START + visual_tokens(rows.size)
            stream = torch.cat([stream[:, :VISUAL_START], seen, stream[:, end:]], 1)
        streams.append(stream)
        places = positions(rows.size, str(stream.device))[:, None, :length]
        axes.append(places.expand(-1, len(index), -1))
    hidden = model.model.language_model(
        inputs_embeds=torch.cat(streams), position_ids=torch.cat(axes, 1), use_cache=False
    ).last_hidden_state
    columns = torch.cat([rows.columns[index] for rows, index in picked]).long()
    columns = columns.clamp(max=length - 1)
    at = columns[..., None].expand(-1, -1, hidden.shape[-1])
    targets = torch.cat([rows.targets[index] for rows, index in picked]).long()
    weights = torch.cat([rows.weights[index] for rows, index in picked])
    return model.lm_head(hidden.gather(1, at)), targets, weights
