"""Gemma 3, the models that also see: a picture's tokens see each other in both directions.

That holds inside one picture, and in layers that look back a window it ends where the window does.
A picture is 256 tokens; with crops each crop is a picture of its own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
)

from models.decoder import TOWER
from models.hosted import HostedModel
from models.sight import Span, spans_of
from models.toys_sight import save_seeing, text_settings
from models.toys_vision_more import TILE, TILE_EYES, seeing_gemma_tokenizer
from models.vision_language import VisionLanguage

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<start_of_image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


class Gemma3(VisionLanguage):
    """The text model of `gemma3_text` behind a SigLIP tower."""

    kind = "gemma3"
    title = "Gemma 3"
    model = Gemma3ForConditionalGeneration

    def reference_ids(self, hosted: HostedModel) -> frozenset[int]:
        """The mark that begins a picture, and its tokens; not the one that ends it."""
        return self.image_ids(hosted) | {int(hosted.modules[TOWER].config.boi_token_id)}

    def joint(self, hosted: HostedModel, ids: Sequence[int]) -> tuple[Span, ...]:
        """Each picture's tokens, without the marks around them."""
        (picture,) = self.image_ids(hosted)
        return spans_of([column for column, token in enumerate(ids) if token == picture])

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """4 tokens a picture; every other layer looks back 3 tokens."""
        tokenizer: Any = seeing_gemma_tokenizer()
        text: dict[str, Any] = {
            **text_settings(tokenizer),
            "vocab_size": tokenizer.image_token_id,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        }
        config = Gemma3Config(
            text_config=text,
            vision_config={
                **TILE_EYES,
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
            },
            mm_tokens_per_image=4,
            boi_token_index=tokenizer.boi_token_id,
            eoi_token_index=tokenizer.eoi_token_id,
            image_token_index=tokenizer.image_token_id,
            tie_word_embeddings=False,
        )
        pictures = Gemma3ImageProcessorPil(size={"height": TILE, "width": TILE})
        processor = Gemma3Processor(
            pictures, tokenizer, chat_template=_TEMPLATE, image_seq_length=4
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Gemma3()
