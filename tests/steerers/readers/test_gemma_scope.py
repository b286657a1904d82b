import numpy as np
import pytest
import torch

from steerers.errors import (
    BadDictionary,
    BadFile,
    SiteNotDeclared,
    UnsupportedDictionary,
    UnsupportedHook,
)
from steerers.readers import read

LEAF = "layer_20/width_16k/average_l0_71"


def jump(z, threshold):
    return torch.relu(z) * (z > threshold)


def test_the_path_says_what_the_file_does_not(tmp_path, raw, x, put, agree):
    folder = put(tmp_path / "gemma-scope-2b-pt-res" / LEAF, params__npz=raw)
    sae = read(folder)
    assert (sae.format, sae.site, sae.model) == ("gemma-scope", "lm.block.20", "google/gemma-2-2b")
    assert sae.declared == {"l0": 71.0} and not sae.subtracts_decoder_bias
    codes = jump(x.double() @ raw["W_enc"].double() + raw["b_enc"], raw["threshold"])
    agree(sae, x, codes, codes @ raw["W_dec"].double() + raw["b_dec"])


def test_rows_are_kept_as_stored(tmp_path, raw, put):
    sae = read(put(tmp_path / "gemma-scope-9b-it-res" / LEAF, params__npz=raw))
    assert torch.equal(sae.decoder, raw["W_dec"])
    assert sae.model == "google/gemma-2-9b-it"


def test_small_letters_are_the_same_names(tmp_path, raw, put):
    small = {name.lower(): t for name, t in raw.items()}
    one = read(put(tmp_path / "a", params__npz=raw), site="lm.block.3")
    assert one.digest == read(put(tmp_path / "b", params__npz=small), site="lm.block.3").digest


def test_the_embedding_was_trained_before_the_square_root(tmp_path, raw, x, put, agree):
    folder = put(
        tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", params__npz=raw
    )
    sae = read(folder)
    assert sae.site == "lm.embedding"
    scale = x.shape[-1] ** 0.5
    codes = jump((x.double() / scale) @ raw["W_enc"].double() + raw["b_enc"], raw["threshold"])
    agree(sae, x, codes, (codes @ raw["W_dec"].double() + raw["b_dec"]) * scale)


@pytest.mark.parametrize("kind", ["mlp", "att"])
def test_sets_of_other_places_are_refused(tmp_path, raw, put, kind):
    folder = put(tmp_path / f"gemma-scope-2b-pt-{kind}" / LEAF, params__npz=raw)
    with pytest.raises(UnsupportedHook, match="not the residual stream"):
        read(folder)


def test_transcoders_are_refused(tmp_path, raw, put):
    folder = put(tmp_path / "gemma-scope-2b-pt-transcoders" / LEAF, params__npz=raw)
    with pytest.raises(UnsupportedDictionary, match="transcoder"):
        read(folder, site="lm.block.20")


def test_a_site_is_never_guessed(tmp_path, raw, put):
    bare = put(tmp_path / "mine" / LEAF, params__npz=raw)
    with pytest.raises(SiteNotDeclared, match="site"):
        read(bare)
    assert read(bare, site="blocks.4.hook_resid_post").site == "lm.block.4"
    declared = put(tmp_path / "gemma-scope-2b-pt-res" / LEAF, params__npz=raw)
    with pytest.raises(BadDictionary, match=r"lm\.block\.20, not to lm\.block\.4"):
        read(declared, site="lm.block.4")


def test_one_file_can_be_asked_for(tmp_path, raw, put):
    folder = put(tmp_path / "two", a__npz=raw, b__npz={**raw, "b_dec": raw["b_dec"] + 1})
    a, b = (read(folder / name, site="lm.block.0") for name in ("a.npz", "b.npz"))
    assert (a.id, b.id) == ("a", "b") and a.digest != b.digest


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([object()], dtype=object))
    with pytest.raises(BadFile, match="cannot be read"):
        read(tmp_path, site="lm.block.0")
