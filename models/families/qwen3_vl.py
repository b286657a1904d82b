"""Qwen3-VL, dense: features of the vision tower's depths are added behind early decoder layers.

The residual stream is what enters the next layer, DeepStack's addition included: a detour that
reads or writes there moves the whole of it, and additions behind later layers still happen. The
three axes of a position share a head's width by turns. Not covered: videos.
"""

from pathlib import Path

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from models.three_axes import ThreeAxes
from models.toys_sight import save_seeing, text_settings
from models.toys_vision import DEEP_EYES, INTERLEAVED, QWEN_EYES, qwen_ids, qwen_processor


class Qwen3VL(ThreeAxes):
    """Causal; interleaved M-RoPE; DeepStack."""

    kind = "qwen3_vl"
    title = "Qwen3-VL"
    model = Qwen3VLForConditionalGeneration

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers, features added behind the first two; positions of a 4x4 grid."""
        processor = qwen_processor(Qwen3VLProcessor)
        tokenizer = processor.tokenizer
        config = Qwen3VLConfig(
            text_config={**text_settings(tokenizer), **INTERLEAVED},
            vision_config={**QWEN_EYES, **DEEP_EYES},
            **qwen_ids(tokenizer),
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Qwen3VL()
