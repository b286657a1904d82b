"""PaliGemma 2: as PaliGemma, with Gemma 2 as its text model."""

from pathlib import Path
from typing import Any

from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

from models.prefix_read import PrefixRead
from models.toys_sight import save_seeing, text_settings
from models.toys_vision_more import TILE_EYES, toy_pali_processor


class PaliGemma2(PrefixRead):
    """Gemma 2 behind a SigLIP tower."""

    kind = "paligemma2"
    title = "PaliGemma 2"
    model = PaliGemmaForConditionalGeneration
    text = "gemma2"
    default_attention = "eager"

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Small caps, so that they are felt, and windows of 8 tokens."""
        processor = toy_pali_processor()
        tokenizer = processor.tokenizer
        text: dict[str, Any] = {
            **text_settings(tokenizer),
            "model_type": "gemma2",
            "vocab_size": tokenizer.image_token_id,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 8.0,
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


FAMILY = PaliGemma2()
