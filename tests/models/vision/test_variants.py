"""What shares a class with a family and is built of other parts reads as the library reads, too."""

from typing import Any

import pytest
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
)

from models.loading import load
from models.toys_sight import save_seeing, text_settings
from models.toys_vision import EYES, SIDE, llava_processor, pixtral_processor
from tests.models.vision.equality import EqualsTheLibrary

SMALL = {"image_size": 12, "patch_size": 4}


def llava(folder, text: dict[str, Any], vision: dict[str, Any], **stated: Any):
    processor = llava_processor()
    strategy = stated.get("vision_feature_select_strategy", "default")
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = 1 if strategy == "default" else 0
    config = LlavaConfig(
        text_config={**text_settings(processor.tokenizer), **text},
        vision_config={**EYES, **SMALL, **vision},
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        **stated,
    )
    return save_seeing(folder, LlavaForConditionalGeneration, config, processor, 0)


def siglip_and_qwen(folder):
    """As LLaVA-Interleave: no class token, so that all patches are read."""
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False}
    chosen: dict[str, Any] = {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    return llava(folder, {"model_type": "qwen2"}, vision, **chosen)


def several_layers_and_a_window(folder):
    """As BakLLaVA's Mistral, over features of two layers of the tower."""
    text = {"model_type": "mistral", "sliding_window": 12}
    vision = {"model_type": "clip_vision_model"}
    return llava(folder, text, vision, vision_feature_layer=[-2, -1])


def ministral(folder):
    """As Ministral 3: its queries are scaled by position."""
    processor = pixtral_processor(merge=2)
    turned = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 32.0,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.1,
    }
    text: dict[str, Any] = {
        "model_type": "ministral3",
        **text_settings(processor.tokenizer),
        "head_dim": 8,
        "sliding_window": None,
        "rope_parameters": turned,
    }
    vision = {"model_type": "pixtral", **EYES, "image_size": 4 * SIDE, "patch_size": SIDE // 2}
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=10, tie_word_embeddings=False
    )
    return save_seeing(folder, Mistral3ForConditionalGeneration, config, processor, 0)


class TestVariants(EqualsTheLibrary):
    @pytest.fixture(
        scope="class",
        params=[siglip_and_qwen, several_layers_and_a_window, ministral],
        ids=lambda make: make.__name__,
    )
    @classmethod
    def hosted(cls, request, tmp_path_factory):
        hosted = load("variant", request.param(tmp_path_factory.mktemp("variant")))
        yield hosted
        hosted.close()
