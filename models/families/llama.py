"""Llama 2 and 3, and what shares their class: TinyLlama, SmolLM, Vicuna.

Rotations that Llama 3.1 stretches (`rope_type: llama3`) are fixed tables: every length is served.
"""

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from models.language import Language
from models.toys_decoders import save_decoder, settings, toy_llama_tokenizer


class Llama(Language):
    """Full attention over grouped keys."""

    kind = "llama"
    title = "Llama"
    model = LlamaForCausalLM

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers, two heads' worth of keys for four of queries."""
        tokenizer = toy_llama_tokenizer()
        config = LlamaConfig(**settings(tokenizer), tie_word_embeddings=False)
        return save_decoder(folder, self.model, config, tokenizer, seed)


FAMILY = Llama()
