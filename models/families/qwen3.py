"""Qwen 3, dense: queries and keys are normed per head, without biases."""

from pathlib import Path

from transformers import Qwen3Config, Qwen3ForCausalLM

from models.language import Language
from models.toys_decoders import TALK, save_decoder, settings
from models.toys_lm import toy_qwen_tokenizer


class Qwen3(Language):
    """Full attention with heads of a stated width."""

    kind = "qwen3"
    title = "Qwen 3"
    model = Qwen3ForCausalLM

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Heads wider than the stream's share."""
        tokenizer = toy_qwen_tokenizer(TALK)
        config = Qwen3Config(**settings(tokenizer), head_dim=16, tie_word_embeddings=False)
        return save_decoder(folder, self.model, config, tokenizer, seed)


FAMILY = Qwen3()
