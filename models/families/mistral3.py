"""Mistral 3 (Small 3.1 and later): Pixtral's pictures, 2x2 patches to a token.

Positions by analogy with Pixtral: visual are the patches, the reference's are the breaks too.
"""

from pathlib import Path
from typing import Any

from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from models.marked_rows import MarkedRows
from models.toys_sight import save_seeing, text_settings
from models.toys_vision import EYES, SIDE, pixtral_processor


class Mistral3(MarkedRows):
    """Causal."""

    kind = "mistral3"
    title = "Mistral 3"
    model = Mistral3ForConditionalGeneration

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers; pictures of up to 4x4 tokens."""
        processor = pixtral_processor(merge=2)
        tokenizer = processor.tokenizer
        text: dict[str, Any] = {"model_type": "mistral", **text_settings(tokenizer)}
        vision = {"model_type": "pixtral", **EYES, "image_size": 4 * SIDE, "patch_size": SIDE // 2}
        config = Mistral3Config(
            text_config={**text, "head_dim": 8, "sliding_window": None},
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Mistral3()
