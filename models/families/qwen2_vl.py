"""Qwen2-VL: pictures of any size, tokens at a position on three axes.

Visual tokens stand at (time, row, column); a text behind a picture goes on at the larger of its
height and width, so a row's positions run behind its columns by an offset of its own. Nikankin et
al. (2025) patch the `image_pad` tokens, and ran the model without these axes: their numbers need
not be ours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from models.decoder import TOWER
from models.hosted import HostedModel
from models.toys_sight import MROPE, save_seeing, seeing_qwen_processor, text_settings
from models.vision_language import VisionLanguage


class Qwen2VL(VisionLanguage):
    """Causal; M-RoPE."""

    kind = "qwen2_vl"
    title = "Qwen2-VL"
    model = Qwen2VLForConditionalGeneration

    def turned(
        self, hosted: HostedModel, ids: Sequence[int], read: Mapping[str, Tensor]
    ) -> tuple[Int[Tensor, "axes tokens"] | None, int]:
        """The library's own positions, computed for this row alone."""
        tokens = torch.tensor([ids])
        kinds = torch.isin(tokens, torch.tensor(sorted(self.image_ids(hosted)))).int()
        found, delta = hosted.modules[TOWER].model.get_rope_index(
            tokens, mm_token_type_ids=kinds, image_grid_thw=read["image_grid_thw"]
        )
        return found[:, 0], int(delta)

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers, a vision tower of two blocks, 16 pixels a token."""
        processor = seeing_qwen_processor()
        vision = {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 8,
        }
        marks = processor.tokenizer.convert_tokens_to_ids
        config = Qwen2VLConfig(
            text_config={**text_settings(processor.tokenizer), **MROPE},
            vision_config=vision,
            image_token_id=marks("<|image_pad|>"),
            video_token_id=marks("<|video_pad|>"),
            vision_start_token_id=marks("<|vision_start|>"),
            vision_end_token_id=marks("<|vision_end|>"),
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Qwen2VL()
