"""Phi 3 and 3.5 mini: queries, keys and values come from one matrix, gate and up from another.

Linear sites are those fused matrices, as the checkpoint has them: `lm.layers.0.self_attn.qkv_proj`.
A checkpoint with `longrope` is served up to the length that it was first trained for: beyond it the
rotation of every row would depend on the longest one.
"""

from pathlib import Path

from transformers import Phi3Config, Phi3ForCausalLM

from models.language import Language
from models.toys_decoders import save_decoder, settings, toy_llama_tokenizer


class Phi3(Language):
    """Llama's layers, fused."""

    kind = "phi3"
    title = "Phi 3"
    model = Phi3ForCausalLM

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Half of each head is turned, in a window of 12 tokens."""
        tokenizer = toy_llama_tokenizer()
        turned = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
        config = Phi3Config(
            **settings(tokenizer),
            sliding_window=12,
            rope_parameters=turned,
            tie_word_embeddings=False,
        )
        return save_decoder(folder, self.model, config, tokenizer, seed)


FAMILY = Phi3()
