"""Pixtral: pictures in their own shape, a break behind each row of patches and an end behind all.

It is of LLaVA's class. Visual are the patches; Nikankin et al. (2025) patch the breaks as well, and
not the end. The stream at breaks is made of words' embeddings: the tower has nothing to say there.
"""

from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaForConditionalGeneration

from models.marked_rows import MarkedRows, vision_tower_of
from models.toys_sight import save_seeing, text_settings
from models.toys_vision import EYES, SIDE, pixtral_processor


class Pixtral(MarkedRows):
    """Causal."""

    kind = "pixtral"
    title = "Pixtral"
    model = LlavaForConditionalGeneration

    def matches(self, folder: Path) -> bool:
        """Whether `config.json` names its class, with Pixtral's vision tower."""
        return super().matches(folder) and vision_tower_of(folder) == "pixtral"

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers of Mistral, which see all; pictures of up to 4x4 tokens."""
        processor = pixtral_processor(merge=1)
        tokenizer = processor.tokenizer
        text: dict[str, Any] = {"model_type": "mistral", **text_settings(tokenizer)}
        vision = {"model_type": "pixtral", **EYES, "image_size": 4 * SIDE, "patch_size": SIDE}
        config = LlavaConfig(
            text_config={**text, "head_dim": 8, "sliding_window": None},
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Pixtral()
