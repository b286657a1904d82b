"""PaliGemma: the whole prompt, pictures and text, sees itself in both directions.

What is written behind it is causal. There is no conversation: a prompt is its pictures and one
text.
"""

from pathlib import Path
from typing import Any

from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
)

from models.prefix_read import PrefixRead
from models.toys_sight import save_seeing, text_settings
from models.toys_vision_more import TILE_EYES, toy_pali_processor


class PaliGemma(PrefixRead):
    """Gemma behind a SigLIP tower."""

    kind = "paligemma"
    title = "PaliGemma"
    model = PaliGemmaForConditionalGeneration
    text = "gemma"

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """16 tokens a picture."""
        processor = toy_pali_processor()
        tokenizer = processor.tokenizer
        text: dict[str, Any] = {
            **text_settings(tokenizer),
            "model_type": "gemma",
            "vocab_size": tokenizer.image_token_id,
            "head_dim": 8,
        }
        config = PaliGemmaConfig(
            text_config=text,
            vision_config={
                **TILE_EYES,
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
            },
            image_token_index=tokenizer.image_token_id,
            vocab_size=tokenizer.image_token_id,
            hidden_size=32,
            projection_dim=32,
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = PaliGemma()
