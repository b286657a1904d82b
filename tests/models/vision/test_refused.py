"""What cannot work is refused, with the reason, before anything is loaded."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Gemma3nConfig, Gemma4Config, IdeficsConfig, MllamaConfig

from models.errors import BadPart, UnsupportedFamily
from models.family import FAMILIES
from models.loading import family_of, load
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


def gemma4(shared: int, tmp_path):
    folder = folder_of(Gemma4Config(), "Gemma4ForConditionalGeneration", tmp_path)
    stated = json.loads((folder / "config.json").read_text())
    stated["text_config"]["num_kv_shared_layers"] = shared
    stated["vision_config"] = {"model_type": "gemma4_vision"}
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def test_of_one_family_only_the_members_that_share_are_refused(tmp_path):
    with pytest.raises(UnsupportedFamily, match="its last 18 layers reuse"):
        family_of(gemma4(18, tmp_path))
    assert family_of(gemma4(0, tmp_path)).modality == "language"


def test_who_names_the_family_has_the_text_alone(tmp_path):
    assert family_of(gemma4(18, tmp_path), "any_language").modality == "language"


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
