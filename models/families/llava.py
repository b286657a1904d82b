"""LLaVA 1.5: a picture is a square of CLIP's patches, read from its last layer but one.

Pixtral is of the same class and another family: what tells them apart is the vision tower. All
`<image>` tokens are visual, and are what Nikankin et al. (2025) patch.
"""

from pathlib import Path
from typing import Any

from transformers import LlavaConfig, LlavaForConditionalGeneration

from models.marked_rows import vision_tower_of
from models.toys_sight import save_seeing, text_settings
from models.toys_vision import EYES, llava_processor
from models.vision_language import VisionLanguage


class Llava(VisionLanguage):
    """Causal."""

    kind = "llava"
    title = "LLaVA 1.5"
    model = LlavaForConditionalGeneration

    def matches(self, folder: Path) -> bool:
        """Whether `config.json` names its class, with any vision tower but Pixtral's."""
        return super().matches(folder) and vision_tower_of(folder) != "pixtral"

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers of Llama; 9 tokens a picture."""
        processor = llava_processor()
        tokenizer = processor.tokenizer
        text: dict[str, Any] = {"model_type": "llama", **text_settings(tokenizer)}
        vision = {"model_type": "clip_vision_model", **EYES, "image_size": 12, "patch_size": 4}
        config = LlavaConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=9,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Llava()
