"""Qwen2-VL: pictures of any size, tokens at a position on three axes.

Visual tokens stand at (time, row, column); a text behind a picture goes on at the larger of its
height and width, so a row's positions run behind its columns by an offset of its own. Nikankin et
al. (2025) patch the `image_pad` tokens, and ran the model without these axes: their numbers need
not be ours.
"""

from pathlib import Path

from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from models.three_axes import ThreeAxes
from models.toys_sight import MROPE, save_seeing, seeing_qwen_processor, text_settings


class Qwen2VL(ThreeAxes):
    """Causal; M-RoPE."""

    kind = "qwen2_vl"
    title = "Qwen2-VL"
    model = Qwen2VLForConditionalGeneration

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers, a vision tower of two blocks, 16 pixels a token."""
        processor = seeing_qwen_processor()
        vision = {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
        }
        marks = processor.tokenizer.convert_tokens_to_ids
        config = Qwen2VLConfig(
            text_config={**text_settings(processor.tokenizer), **MROPE},
            vision_config=vision,
            image_token_id=marks("<|image_pad|>"),
            video_token_id=marks("<|video_pad|>"),
            vision_start_token_id=marks("<|vision_start|>"),
            vision_end_token_id=marks("<|vision_end|>"),
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Qwen2VL()
