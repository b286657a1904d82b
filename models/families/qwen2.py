"""Qwen 2 and 2.5: Llama's layers with biases on queries, keys and values."""

from pathlib import Path

from transformers import Qwen2Config, Qwen2ForCausalLM

from models.language import Language
from models.toys_decoders import TALK, save_decoder, settings
from models.toys_lm import toy_qwen_tokenizer


class Qwen2(Language):
    """Full attention; some checkpoints look back a window in their later layers."""

    kind = "qwen2"
    title = "Qwen 2 and 2.5"
    model = Qwen2ForCausalLM

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Two full layers and two that look back 8 tokens."""
        tokenizer = toy_qwen_tokenizer(TALK)
        window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
        config = Qwen2Config(**settings(tokenizer), **window, tie_word_embeddings=False)
        return save_decoder(folder, self.model, config, tokenizer, seed)


FAMILY = Qwen2()
