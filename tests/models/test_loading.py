import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from miniature import weights_path
from models.errors import (
    ModelNotFound,
    NotSafetensors,
    UnknownSetting,
    UnsupportedFamily,
    WrongBase,
)
from models.family import FAMILIES
from models.loading import load


def test_the_family_is_recognised_by_the_folder(tiny_sd, tiny_sdxl):
    assert tiny_sd.family is FAMILIES["stable_diffusion"]
    assert tiny_sdxl.family is FAMILIES["stable_diffusion_xl"]


def test_a_folder_of_no_family_is_refused(tmp_path, tiny_sd_folder):
    folder = shutil.copytree(tiny_sd_folder / "unet", tmp_path / "unet")
    with pytest.raises(UnsupportedFamily):
        load("odd", folder)


def test_pickled_weights_are_not_read(tmp_path, tiny_sd_folder):
    folder = shutil.copytree(tiny_sd_folder, tmp_path / "pickled")
    for file in folder.rglob("*.safetensors"):
        torch.save({}, file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(NotSafetensors):
        load("pickled", folder)


def test_one_pickled_part_among_safetensors_is_not_read_either(tmp_path, tiny_sd_folder):
    folder = shutil.copytree(tiny_sd_folder, tmp_path / "half")
    torch.save({}, folder / "text_encoder" / "pytorch_model.bin")
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(NotSafetensors):
        load("half", folder)


def test_what_is_neither_a_folder_nor_a_hub_id_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound):
        load("nowhere", tmp_path / "nowhere")


@pytest.mark.parametrize(("what", "value"), [("dtype", "int8"), ("family", "astrology")])
def test_unknown_settings_are_refused(tiny_sd_folder, what, value):
    with pytest.raises(UnknownSetting, match=value):
        load("odd", tiny_sd_folder, **{what: value})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_stated_one_in_every_part(tiny_sd_folder, dtype):
    hosted = load("stated", tiny_sd_folder, dtype=dtype)
    for part in ("text_encoder", "unet"):
        assert {w.dtype for w in hosted.modules[part].parameters()} == {hosted.dtype}
    vae = {w.dtype for w in hosted.modules["vae"].parameters()}
    assert vae == {torch.float32 if dtype == "float16" else hosted.dtype}
    hosted.close()


def test_defaults_are_read_from_beside_the_model(tmp_path, tiny_sd_folder):
    folder = shutil.copytree(tiny_sd_folder, tmp_path / "stated")
    (folder / "tiller.json").write_text(json.dumps({"edit_block": 2}))
    hosted = load("stated", folder)
    assert hosted.defaults["edit_block"] == 2
    hosted.close()


def test_a_full_clip_with_another_text_tower_is_refused(tmp_path, tiny_sd_folder):
    other = FAMILIES["stable_diffusion"].tiny(tmp_path / "other", seed=1)
    with pytest.raises(WrongBase):
        load("mixed", tiny_sd_folder, projection=other / "clip")


def test_without_a_full_clip_there_is_no_projection(tmp_path, tiny_sd_folder):
    folder = shutil.copytree(tiny_sd_folder, tmp_path / "bare")
    shutil.move(folder / "clip", tmp_path / "elsewhere")
    bare = load("bare", folder)
    assert bare.clip is None
    assert bare.text_towers["text_encoder"].projection is None
    given = load("given", folder, projection=tmp_path / "elsewhere")
    assert given.text_towers["text_encoder"].projection is not None
    assert bare.fingerprint == given.fingerprint
    for hosted in (bare, given):
        hosted.close()


def test_models_that_are_loaded_at_once_all_get_their_weights(tiny_sd_folder):
    with ThreadPoolExecutor(1) as beside:
        drawing = beside.submit(lambda: [load("sd", tiny_sd_folder) for _ in range(3)])
        while not drawing.done():
            writing = load("lm", weights_path("language"))
            assert not any(p.is_meta for p in writing.modules["lm"].parameters())
        assert len(drawing.result()) == 3
