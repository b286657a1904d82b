"""Qwen3-VL with a mixture of experts: the dense model's pictures, positions and DeepStack.

Each token chooses its experts by itself; but an expert takes the tokens of all rows together, so
company can move a row's last bits (below 1e-5 in float32). Experts are stacked matrices, not linear
layers: adapters reach attention and the dense layers, patches of the stream all.
"""

from pathlib import Path
from typing import Any

from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, Qwen3VLProcessor

from models.three_axes import ThreeAxes
from models.toys_sight import save_seeing, text_settings
from models.toys_vision import DEEP_EYES, INTERLEAVED, QWEN_EYES, qwen_ids, qwen_processor


class Qwen3VLMoe(ThreeAxes):
    """Causal; interleaved M-RoPE; DeepStack."""

    kind = "qwen3_vl_moe"
    title = "Qwen3-VL (mixture of experts)"
    model = Qwen3VLMoeForConditionalGeneration
    keeps_bits = False

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Three layers of four experts, two for each token, and a dense layer."""
        processor = qwen_processor(Qwen3VLProcessor)
        tokenizer = processor.tokenizer
        experts: dict[str, Any] = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "mlp_only_layers": [2],
        }
        config = Qwen3VLMoeConfig(
            text_config={**text_settings(tokenizer), **INTERLEAVED, **experts},
            vision_config={**QWEN_EYES, **DEEP_EYES},
            **qwen_ids(tokenizer),
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Qwen3VLMoe()
