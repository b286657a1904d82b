import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
from models.loading import fastest_dtype, load
from models.patch import LowRank, Patch


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


@pytest.mark.parametrize(
    ("what", "value"), [("dtype", "int8"), ("family", "astrology"), ("denoiser_dtype", "int8")]
)
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


def test_the_denoiser_alone_may_have_a_dtype_of_its_own(tiny_sd_folder, tiny_sdxl_folder):
    for folder in (tiny_sd_folder, tiny_sdxl_folder):
        hosted = load("mixed", folder, denoiser_dtype="bfloat16")
        dtypes = {a: {w.dtype for w in m.parameters()} for a, m in hosted.modules.items()}
        assert dtypes.pop("unet") == {torch.bfloat16}
        assert set().union(*dtypes.values()) == {torch.float32} == {hosted.dtype}
        drawing: Any = hosted.family
        assert drawing.denoiser_dtype(hosted) == torch.bfloat16
        assert drawing.latents_dtype(hosted) == torch.float32
        said = drawing.encode(hosted, ["a red cat"], [Patch()])
        assert {p.dtype for p in said.parts if p is not None} == {torch.bfloat16}
        hosted.close()


def test_all_that_edits_touch_is_the_same_under_a_denoiser_of_another_dtype(
    tiny_sd, tiny_sd_folder
):
    mixed = load("mixed", tiny_sd_folder, denoiser_dtype="bfloat16")
    site = next(s for s in mixed.linears if s.endswith("fc2"))
    drawn = torch.Generator().manual_seed(0)
    out, inner = mixed.linears[site].weight.shape
    low = LowRank(
        site=site,
        left=torch.randn(out, 1, generator=drawn),
        right=torch.randn(1, inner, generator=drawn),
    )
    states = []
    for hosted in (tiny_sd, mixed):
        with hosted.captured(f"{site}:out") as seen:
            hosted.family.encode(hosted, ["a red cat"], [Patch((low,))])
        states += seen[f"{site}:out"]
    assert mixed.fingerprint == tiny_sd.fingerprint
    assert states[0].dtype == torch.float32 and torch.equal(*states)
    mixed.close()


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("dtype", "device", "capabilities", "chosen"),
    [
        (torch.float32, CPU, {"architecture": "x86_64", "avx512_bf16": True}, torch.bfloat16),
        (torch.float32, CPU, {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        (torch.float32, CPU, {"architecture": "aarch64", "bf16": True}, torch.bfloat16),
        (torch.float32, CPU, {"avx2": True, "avx512_f": True, "avx512_bf16": False}, torch.float32),
        (torch.float32, CPU, {}, torch.float32),
        (torch.float32, GPU, {"avx512_bf16": True}, torch.float32),
        (torch.float16, CPU, {"avx512_bf16": True}, torch.float16),
    ],
)
def test_a_denoiser_is_in_bfloat16_where_the_cpu_multiplies_it(dtype, device, capabilities, chosen):
    assert fastest_dtype(dtype, device, capabilities) == chosen


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_the_machine(monkeypatch, tiny_sd_folder, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    hosted = load("fast", tiny_sd_folder, denoiser_dtype="auto")
    assert hosted.modules["unet"].dtype == (torch.bfloat16 if native else torch.float32)
    hosted.close()


def test_a_family_of_one_dtype_refuses_two(tmp_path):
    folder = FAMILIES["pixart_sigma"].tiny(tmp_path / "pixart")
    with pytest.raises(UnknownSetting, match="bfloat16"):
        load("mixed", folder, denoiser_dtype="bfloat16")
    hosted = load("whole", folder, denoiser_dtype="auto")
    assert hosted.modules["transformer"].dtype == torch.float32
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
