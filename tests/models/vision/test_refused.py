"""What cannot work is refused, with the reason, before anything is loaded."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Gemma3nConfig,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    IdeficsConfig,
    MllamaConfig,
)

from models.errors import BadPart, UnsupportedFamily
from models.family import FAMILIES
from models.loading import family_of, load
from models.toys_sight import text_settings
from models.toys_vision_more import seeing_gemma_tokenizer
from tests.models.vision.equality import asked, picture


def folder_of(config, architecture: str, tmp_path):
    """A folder that says what it holds; nothing in it can be loaded."""
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (MllamaConfig, "MllamaForConditionalGeneration"),
        (IdeficsConfig, "IdeficsForVisionText2Text"),
    ],
)
def test_models_that_look_beside_the_sequence_have_no_visual_rows(config, architecture, tmp_path):
    folder = folder_of(config(), architecture, tmp_path)
    with pytest.raises(UnsupportedFamily, match="cross-attention") as refused:
        load("beside", folder)
    assert "gemma3" in refused.value.remedy


def test_models_whose_last_layers_share_keys_are_refused_with_their_number(tmp_path):
    folder = folder_of(Gemma3nConfig(), "Gemma3nForConditionalGeneration", tmp_path)
    with pytest.raises(UnsupportedFamily, match="its last 15 layers reuse"):
        load("shared", folder)


def gemma4(shared: int, folder):
    """A real one of four layers, the last of which share keys and values."""
    tokenizer = seeing_gemma_tokenizer()
    narrow = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    text = {
        **text_settings(tokenizer),
        **narrow,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": len(tokenizer),
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": shared,
    }
    vision = {"model_type": "gemma4_vision", "num_hidden_layers": 1, "patch_size": 4, **narrow}
    config = Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    Gemma4ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_of_one_family_only_the_members_that_share_are_refused(tmp_path):
    with pytest.raises(UnsupportedFamily, match="its last 2 layers reuse"):
        load("shared", gemma4(2, tmp_path / "shared"))
    assert family_of(gemma4(0, tmp_path / "own")).modality == "language"


def test_who_names_the_family_has_the_text_alone(tmp_path):
    hosted = load("text", gemma4(2, tmp_path), family="any_language")
    assert hosted.family.modality == "language"
    said = hosted.modules["lm"].generate(
        torch.tensor([hosted.family.tokenize(hosted, "the king")]), max_new_tokens=3
    )
    assert said.shape[1] > 3
    hosted.close()


@pytest.fixture(scope="module", params=["gemma3", "internvl", "smolvlm"])
def hosted(request, tmp_path_factory):
    family = FAMILIES[request.param]
    hosted = load("toy", family.tiny(tmp_path_factory.mktemp(family.kind)))
    yield hosted
    hosted.close()


def test_videos_are_refused(hosted):
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "a dog"}]}
    with pytest.raises(BadPart, match="'video'"):
        hosted.family.look(hosted, [message], [])


def test_a_text_cannot_play_a_picture(hosted):
    image = hosted.modules["lm"].config.image_token_id
    mark = hosted.parts["eyes"].processor.tokenizer.convert_ids_to_tokens(image)
    one = picture(16, 16)
    for pictures in ([], [one]):
        with pytest.raises(BadPart, match="stands for a picture"):
            hosted.family.look(hosted, asked(*pictures, f"say {mark} the dog"), pictures)
    with pytest.raises(BadPart, match="stands for a picture"):
        hosted.family.look(hosted, [{"role": "user", "content": mark}], [])
    with pytest.raises(BadPart, match="stands for a picture"):
        hosted.family.tokenize(hosted, f"say {mark}")


def test_a_text_cannot_play_a_video(hosted):
    mark = getattr(hosted.parts["eyes"].processor, "video_token", None)
    if mark is None:
        pytest.skip("it has no mark for videos")
    with pytest.raises(BadPart, match="video"):
        hosted.family.look(hosted, asked(f"say {mark} the dog"), [])
