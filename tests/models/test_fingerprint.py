import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from models.errors import NotSafetensors, WrongBase
from models.fingerprint import fingerprint, folder_digest
from models.loading import load


@pytest.fixture
def encoder(tiny_sd_folder, tmp_path):
    return shutil.copytree(tiny_sd_folder / "text_encoder", tmp_path / "text_encoder")


def rewrite(folder, change):
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_it_does_not_depend_on_how_the_library_names_its_modules(encoder):
    before = fingerprint(encoder)
    assert "encoder.layers.0.mlp.fc2.weight" in load_file(encoder / "model.safetensors")
    rewrite(encoder, lambda t: {f"text_model.{name}": tensor for name, tensor in t.items()})
    assert fingerprint(encoder) == before


def test_it_does_not_depend_on_the_number_of_files(encoder, tmp_path):
    model = CLIPTextModel.from_pretrained(encoder)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "split", max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    assert (
        fingerprint(tmp_path / "whole") == fingerprint(tmp_path / "split") == fingerprint(encoder)
    )


def test_one_changed_number_is_another_model(encoder):
    before = fingerprint(encoder)

    def nudge(tensors):
        tensors["encoder.layers.1.mlp.fc2.weight"][0, 0] += 1e-6
        return tensors

    rewrite(encoder, nudge)
    assert fingerprint(encoder) != before


def test_another_architecture_is_another_model_and_another_library_version_is_not(encoder):
    before, config = fingerprint(encoder), (encoder / "config.json").read_text()
    (encoder / "config.json").write_text(config.replace("quick_gelu", "gelu"))
    assert fingerprint(encoder) != before
    (encoder / "config.json").write_text(
        config.replace('"transformers_version": "', '"transformers_version": "9')
    )
    assert fingerprint(encoder) == before


def test_a_cached_result_is_used_until_size_or_time_of_a_file_changes(encoder, tmp_path):
    cache = tmp_path / "cache"
    before = fingerprint(encoder, cache)
    (side,) = cache.iterdir()
    side.write_text("remembered")
    assert fingerprint(encoder, cache) == "remembered"
    stat = (encoder / "model.safetensors").stat()
    os.utime(encoder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint(encoder, cache) == before
    assert sorted(p.name for p in encoder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_dtype_of_loading_does_not_change_it(tiny_sd, tiny_sd_folder):
    half = load("half", tiny_sd_folder, dtype="bfloat16")
    assert half.fingerprint == tiny_sd.fingerprint
    assert half.modules["text_encoder"].dtype == torch.bfloat16
    half.close()


def test_verifying_reads_the_files_again(tiny_sd_folder, tmp_path):
    folder = shutil.copytree(tiny_sd_folder, tmp_path / "copy")
    hosted = load("copy", folder, cache=tmp_path / "cache")
    hosted.verify()
    rewrite(folder / "text_encoder", lambda t: {n: x + 1 for n, x in t.items()})
    with pytest.raises(WrongBase):
        hosted.verify()
    hosted.close()


def test_a_folder_without_safetensors_has_none(tmp_path):
    with pytest.raises(NotSafetensors):
        fingerprint(tmp_path)


def test_the_whole_folder_is_another_if_only_its_denoiser_or_its_scheduler_is(
    tiny_sd_folder, tmp_path
):
    here = shutil.copytree(tiny_sd_folder, tmp_path / "here")
    before = folder_digest(here, tmp_path / "cache")
    assert folder_digest(tiny_sd_folder) == before
    (here / "clip" / "notes.json").write_text("{}")  # beside the pipeline, no part of it
    assert folder_digest(here, tmp_path / "cache") == before
    config = here / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.00085", "0.00086") + " ")
    other = folder_digest(here, tmp_path / "cache")
    assert other != before
    weights = next((here / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert folder_digest(here, tmp_path / "cache") not in {before, other}
    assert fingerprint(here / "text_encoder") == fingerprint(tiny_sd_folder / "text_encoder")


@pytest.mark.parametrize("digest", [fingerprint, folder_digest])
def test_what_an_older_algorithm_left_in_the_cache_is_not_served(
    tiny_sd_folder, tmp_path, monkeypatch, digest
):
    folder = tiny_sd_folder / "text_encoder" if digest is fingerprint else tiny_sd_folder
    wanted = digest(folder, tmp_path)
    [side] = tmp_path.iterdir()
    side.write_text("of an older algorithm")
    assert digest(folder, tmp_path) == "of an older algorithm"
    monkeypatch.setattr("models.fingerprint._ALGORITHM", 10**6)
    assert digest(folder, tmp_path) == wanted
