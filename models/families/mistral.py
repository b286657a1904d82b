"""Mistral 7B and its relatives: every layer looks back a window, or (since v0.2) sees all."""

from pathlib import Path

from transformers import MistralConfig, MistralForCausalLM

from models.language import Language
from models.toys_decoders import save_decoder, settings, toy_llama_tokenizer


class Mistral(Language):
    """Llama's layers with a window."""

    kind = "mistral"
    title = "Mistral"
    model = MistralForCausalLM

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """A window of 8 tokens."""
        tokenizer = toy_llama_tokenizer()
        config = MistralConfig(
            **settings(tokenizer), head_dim=8, sliding_window=8, tie_word_embeddings=False
        )
        return save_decoder(folder, self.model, config, tokenizer, seed)


FAMILY = Mistral()
