"""Gemma 2: scores and logits are bounded by a soft-cap, every other layer looks back a window only.

Attention runs eagerly: the library's `sdpa` cannot bound the scores.
"""

from pathlib import Path
from typing import Any

from transformers import Gemma2Config, Gemma2ForCausalLM

from models.language import Language
from models.toys_decoders import TALK, save_decoder, settings
from models.toys_lm import toy_gemma_tokenizer


class Gemma2(Language):
    """Two norms around each half of a layer; embeddings scaled and shared with the head."""

    kind = "gemma2"
    title = "Gemma 2"
    model = Gemma2ForCausalLM
    default_attention = "eager"

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Small caps, so that they are felt, and windows of 8 tokens."""
        tokenizer = toy_gemma_tokenizer(TALK)
        stated: dict[str, Any] = {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        }
        config = Gemma2Config(**settings(tokenizer), **stated, tie_word_embeddings=False)
        return save_decoder(folder, self.model, config, tokenizer, seed)


FAMILY = Gemma2()
