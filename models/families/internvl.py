"""InternVL: a picture is cut into tiles, all in one run of tokens, a view of the whole last."""

from pathlib import Path
from typing import Any

from transformers import (
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
)

from models.eyes import without_video
from models.toys_sight import save_seeing, text_settings
from models.toys_vision_more import TILE, TILE_EYES, seeing_qwen_tokenizer
from models.vision_language import VisionLanguage

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% elif part['type'] == 'video' %}<video>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class InternVL(VisionLanguage):
    """Qwen 2 behind a vision tower whose patches are shuffled together."""

    kind = "internvl"
    title = "InternVL 3 and 3.5"
    model = InternVLForConditionalGeneration

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Tiles of 4 tokens, at most four and a view of the whole."""
        tokenizer: Any = seeing_qwen_tokenizer()
        eyes: dict[str, Any] = {**TILE_EYES, "image_size": [TILE] * 2, "patch_size": [4, 4]}
        config = InternVLConfig(
            text_config={**text_settings(tokenizer), "model_type": "qwen2"},
            vision_config=eyes,
            image_token_id=tokenizer.context_image_token_id,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
        pictures = GotOcr2ImageProcessorPil(
            size={"height": TILE, "width": TILE}, crop_to_patches=True, max_patches=4
        )
        processor = without_video(InternVLProcessor)(
            pictures, tokenizer, image_seq_length=4, chat_template=_TEMPLATE
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = InternVL()
