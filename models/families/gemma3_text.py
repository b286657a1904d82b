"""Gemma 3, the models that read text only: five layers in six look back a window.

Near and far layers turn positions by tables of their own. The models that also see are of another
class and another family.
"""

from pathlib import Path
from typing import Any

from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from models.language import Language
from models.toys_decoders import TALK, save_decoder, settings
from models.toys_lm import toy_gemma_tokenizer


class Gemma3Text(Language):
    """Normed queries and keys, two rotations, no soft-cap."""

    kind = "gemma3_text"
    title = "Gemma 3 (text)"
    model = Gemma3ForCausalLM

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Three layers that look back 8 tokens and one that sees all."""
        tokenizer = toy_gemma_tokenizer(TALK)
        stated: dict[str, Any] = {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        }
        config = Gemma3TextConfig(**settings(tokenizer), **stated, tie_word_embeddings=False)
        return save_decoder(folder, self.model, config, tokenizer, seed)


FAMILY = Gemma3Text()
