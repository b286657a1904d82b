"""What every layout has in common: cards, the hub, broken files."""

import json

import pytest
import torch

from steerers.errors import BadDictionary, BadFile, FilesNotFound, UnknownLayout
from steerers.readers import read, readers
from steerers.sources import Source, _belongs, find


def test_every_layout_has_a_reader():
    assert set(readers()) == {
        "dictionary-learning", "gemma-scope", "gemma-scope-2", "goodfire", "llama-scope", "openai",
        "qwen-scope", "saelens", "sparsify",
    }  # fmt: skip


def test_a_card_beside_the_files_says_what_they_do_not(tmp_path, raw, put):
    card = {"id": "moods", "site": "lm.block.3", "model": "mine", "declared": {"l0": 12}}
    folder = put(tmp_path / "sae", params__npz=raw, tiller__json=card)
    sae = read(folder)
    assert (sae.id, sae.site, sae.model) == ("moods", "lm.block.3", "mine")
    assert sae.declared == {"l0": 12.0}
    assert read(folder, id="other").id == "other"
    with pytest.raises(BadDictionary, match="not to"):
        read(folder, site="lm.block.4")
    (folder / "tiller.json").write_text(json.dumps({**card, "declared": {"l0": "many"}}))
    with pytest.raises(BadFile, match="numbers"):
        read(folder)


def test_nothing_there_and_nothing_known(tmp_path):
    with pytest.raises(UnknownLayout, match="no files"):
        read(tmp_path)
    with pytest.raises(FilesNotFound):
        read(tmp_path / "nowhere" / "at" / "all")


def test_broken_files_are_refused(tmp_path, raw, put):
    folder = put(tmp_path / "sae", params__npz={"W_enc": raw["W_enc"]})
    with pytest.raises(BadFile, match="no tensor b_enc"):
        read(folder, site="lm.block.0")
    (folder / "params.npz").write_bytes(b"PK not a zip")
    with pytest.raises(BadFile, match="cannot be read"):
        read(folder, site="lm.block.0")
    odd = put(tmp_path / "odd", cfg__json={"k": "three"}, sae__safetensors={})
    with pytest.raises(BadFile, match=r"tensor|sparsify"):
        read(odd, site="lm.block.0")
    (odd / "cfg.json").write_text("{")
    with pytest.raises(BadFile, match="not JSON"):
        read(odd, site="lm.block.0")


def test_a_config_that_lacks_its_words_is_refused(tmp_path, raw, put):
    tensors = {
        "encoder.weight": raw["W_enc"].T, "encoder.bias": raw["b_enc"], "W_dec": raw["W_dec"],
        "b_dec": raw["b_dec"],
    }  # fmt: skip
    folder = put(tmp_path / "layers.1", cfg__json={"k": 3}, sae__safetensors=tensors)
    with pytest.raises(BadFile, match="not as sparsify has them"):
        read(folder)


def test_tensors_of_any_precision_are_computed_with_in_float32(tmp_path, raw, put):
    halves = {n: t.half() for n, t in raw.items()} | {"threshold": raw["threshold"]}
    sae = read(put(tmp_path / "sae", params__npz=halves), site="lm.block.0")
    assert sae.encoder.dtype == torch.float32
    assert torch.equal(sae.decoder, raw["W_dec"].half().float())
    assert torch.equal(sae.activation.threshold, raw["threshold"])


@pytest.fixture
def hub(tmp_path, raw, put):
    """A hub cache as huggingface_hub lays it out, with one repository of two SAEs in it."""
    repository = tmp_path / "hub" / "models--google--gemma-scope-2b-pt-res"
    commit = "0" * 40
    for layer in (19, 20):
        folder = repository / "snapshots" / commit / f"layer_{layer}/width_16k/average_l0_71"
        put(folder, params__npz={**raw, "b_dec": raw["b_dec"] + layer})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return tmp_path / "hub"


def test_a_folder_of_the_hub_without_a_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
    sae = read(name, cache=hub)
    assert (sae.id, sae.site, sae.model) == (name, "lm.block.20", "google/gemma-2-2b")
    assert read(f"{name}/params.npz", cache=hub).digest == sae.digest
    other = read(name.replace("_20", "_19"), cache=hub)
    assert other.site == "lm.block.19" and other.digest != sae.digest
    for missing in (f"{name}/none", "google/unknown/layer_1", "google/a b"):
        with pytest.raises(FilesNotFound):
            read(missing, cache=hub)


def test_only_the_asked_folder_of_a_repository_is_fetched():
    listed = [
        "layer_1/width_16k/average_l0_5/params.npz", "layer_1/README.json", "L15R/hyperparams.json",
        "L15R/checkpoints/final.safetensors", "ae.pt", "deep/ae.pt",
    ]  # fmt: skip
    wanted = {inner: [n for n in listed if _belongs(n, inner)] for inner in ("", "L15R", "layer_1")}
    assert wanted == {"": ["ae.pt"], "L15R": listed[2:4], "layer_1": ["layer_1/README.json"]}


def test_a_revision_can_be_part_of_the_name(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    inner = "layer_20/width_16k/average_l0_71"
    source = find(f"google/gemma-scope-2b-pt-res@main/{inner}", cache=hub)
    assert isinstance(source, Source) and source.parts[-1] == "average_l0_71"
    with pytest.raises(FilesNotFound):
        find(f"google/gemma-scope-2b-pt-res@other/{inner}", cache=hub)
