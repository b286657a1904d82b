"""Tiny random models that see, and the processors that a hub would bring with them.

As in `models.toys`: real classes, small, awake: another picture is another answer.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models.decoder import find_decoder
from models.eyes import without_video
from models.toys import seeded, wake
from models.toys_decoders import TALK, settings
from models.toys_lm import KNOWN, behind_spaces, grown, numbered, tilt

QWEN_MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MROPE: dict[str, Any] = {
    # The three axes share half a head's width.
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
}


def seeing_qwen_tokenizer() -> Qwen2Tokenizer:
    """A Qwen tokenizer with the marks around pictures."""
    merges = grown(behind_spaces(f"{TALK} {KNOWN}", "Ġ"))
    symbols = [*bytes_to_unicode().values(), *(a + b for a, b in merges)]
    return Qwen2Tokenizer(
        vocab=numbered([*symbols, *QWEN_MARKS]),
        merges=merges,
        additional_special_tokens=list(QWEN_MARKS[1:]),
    )


def seeing_qwen_processor(*, patch: int = 8, least: int = 32 * 32) -> Any:
    """Pictures in their own size, from 4 tokens on."""
    stated: dict[str, Any] = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": least, "longest_edge": 16 * least},
    }
    return without_video(Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(**stated),
        tokenizer=seeing_qwen_tokenizer(),
        chat_template=QWEN_TEMPLATE,
    )


def marked(tokenizer: Any, *marks: str) -> Any:
    """The tokenizer with these marks, each a token of its own."""
    tokenizer.add_special_tokens(
        {"extra_special_tokens": list(marks)}, replace_extra_special_tokens=False
    )
    return tokenizer


def text_settings(tokenizer: Any) -> dict[str, Any]:
    """What the configuration of a tiny decoder that sees says."""
    return {**settings(tokenizer), "max_position_embeddings": 512}


def save_seeing(folder: Path, kind: type[Any], config: Any, processor: Any, seed: int) -> Path:
    """Write a random member of the class with its processor."""
    with seeded(seed):
        model = kind(config)
    wake(model, seed, spread=1.2)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    tilt(find_decoder(model).norm)
    model.get_output_embeddings().weight.data.mul_(3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
