"""LLaVA-OneVision: a picture whole and again in tiles, a learned vector behind each line.

That vector stands among the features, so the ends of lines are `<image>` tokens and visual like
all others. Several pictures of one prompt are not cut into tiles: so the library's processor has
it, and so the model was trained.
"""

from pathlib import Path
from typing import Any

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from models.toys_sight import save_seeing, text_settings
from models.toys_vision import EYES, PINPOINTS, onevision_processor
from models.vision_language import VisionLanguage


class LlavaOneVision(VisionLanguage):
    """Causal."""

    kind = "llava_onevision"
    title = "LLaVA-OneVision"
    model = LlavaOnevisionForConditionalGeneration

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers of Qwen 2; 10 to 24 tokens for a picture alone, 5 among others."""
        processor = onevision_processor()
        tokenizer = processor.tokenizer
        text: dict[str, Any] = {"model_type": "qwen2", **text_settings(tokenizer)}
        vision: dict[str, Any] = {
            "model_type": "siglip_vision_model",
            **EYES,
            "image_size": 16,
            "patch_size": 8,
            "vision_use_head": False,
        }
        config = LlavaOnevisionConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=PINPOINTS,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = LlavaOneVision()
