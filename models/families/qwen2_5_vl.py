"""Qwen2.5-VL: Qwen2-VL with a vision tower that looks through windows in most of its blocks.

Nikankin et al. (2025) patch the `image_pad` tokens, not the marks around them. A position on three
axes is as Qwen2-VL's; only videos are timed otherwise, and those are not read.
"""

from pathlib import Path
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from models.three_axes import ThreeAxes
from models.toys_sight import MROPE, save_seeing, text_settings
from models.toys_vision import QWEN_EYES, qwen_ids, qwen_processor


class Qwen25VL(ThreeAxes):
    """Causal; M-RoPE."""

    kind = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    model = Qwen2_5_VLForConditionalGeneration

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers; a tower of three blocks, whose windows hold 2x2 tokens in all but one."""
        processor = qwen_processor(Qwen2_5_VLProcessor)
        tokenizer = processor.tokenizer
        vision: dict[str, Any] = {**QWEN_EYES, "window_size": 16, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(
            text_config={**text_settings(tokenizer), **MROPE},
            vision_config=vision,
            **qwen_ids(tokenizer),
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Qwen25VL()
