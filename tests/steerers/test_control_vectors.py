import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steerers.control_vectors import Vectors, read_vectors
from steerers.errors import (
    BadFile,
    BadVector,
    FilesNotFound,
    PickleRefused,
    SiteNotDeclared,
    UnsupportedHook,
)

D = 6


@pytest.fixture
def two() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"lm.block.3": torch.randn(D), "lm.block.10": torch.randn(D)}


def equal(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[s], wanted[s]) for s in wanted)


def export_gguf(path, vectors, architecture="controlvector", half=False):
    """As repeng's `export_gguf` writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for site, vector in vectors.items():
        array = vector.half().numpy() if half else vector.numpy()
        writer.add_tensor(f"direction.{site.rpartition('.')[2]}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("half", [False, True])
def test_repengs_directions(tmp_path, two, half):
    found = read_vectors(export_gguf(tmp_path / "happy.gguf", two, half=half))
    assert equal(found, {s: v.half().float() if half else v for s, v in two.items()})


def test_another_gguf_is_refused(tmp_path, two):
    with pytest.raises(BadFile, match="llama"):
        read_vectors(export_gguf(tmp_path / "model.gguf", two, architecture="llama"))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(BadFile):
        read_vectors(tmp_path / "broken.gguf")


@pytest.mark.parametrize(
    "name", ["layers.{}", "{}", "direction.{}", "layer_{}", "model.layers.{}", "lm.block.{}",
             "blocks.{}.hook_resid_post"],
)  # fmt: skip
def test_names_that_say_the_layer(tmp_path, two, name):
    tensors = {name.format(s.rpartition(".")[2]): v for s, v in two.items()}
    save_file(tensors, tmp_path / "v.safetensors")
    assert equal(read_vectors(tmp_path / "v.safetensors"), two)
    only = read_vectors(tmp_path / "v.safetensors", site="lm.block.10")
    assert equal(only, {"lm.block.10": two["lm.block.10"]})
    with pytest.raises(BadVector, match=r"lm\.block\.4"):
        read_vectors(tmp_path / "v.safetensors", site="lm.block.4")


def test_a_single_vector_belongs_where_its_file_or_the_caller_says(tmp_path, two):
    vector = two["lm.block.3"]
    np.savez(tmp_path / "layer_3.npz", vector.numpy())
    torch.save(vector[None], tmp_path / "layer_3.pt")
    np.save(tmp_path / "mood.npy", vector.numpy())
    for name in ("layer_3.npz", "layer_3.pt"):
        assert equal(read_vectors(tmp_path / name), {"lm.block.3": vector})
    assert equal(read_vectors(tmp_path / "mood.npy", site="lm.block.7"), {"lm.block.7": vector})
    with pytest.raises(SiteNotDeclared):
        read_vectors(tmp_path / "mood.npy")
    with pytest.raises(BadVector):
        read_vectors(tmp_path / "layer_3.npz", site="lm.block.7")


@pytest.mark.parametrize(
    ("tensors", "error", "said"),
    [
        ({"layers.1": torch.zeros(D)}, BadVector, "zero"),
        ({"layers.1": torch.full((D,), torch.nan)}, BadVector, "finite"),
        ({"layers.1": torch.ones(2, D)}, BadVector, "shape"),
        ({"layers.1": torch.ones(D), "1": torch.ones(D)}, BadVector, "several"),
        ({"layers.1": torch.ones(D), "mood": torch.ones(D)}, SiteNotDeclared, "site"),
        ({"blocks.1.hook_mlp_out": torch.ones(D)}, UnsupportedHook, "MLP"),
    ],
)
def test_what_is_no_vector_is_refused(tmp_path, tensors, error, said):
    save_file(tensors, tmp_path / "v.safetensors")
    with pytest.raises(error, match=said):
        read_vectors(tmp_path / "v.safetensors")


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_nothing_and_pickles_are_refused(tmp_path, capsys):
    with pytest.raises(FilesNotFound):
        read_vectors(tmp_path / "none.gguf")
    torch.save({"layers.1": Payload()}, tmp_path / "v.pt")
    with pytest.raises(PickleRefused):
        read_vectors(tmp_path / "v.pt")
    assert "never" not in capsys.readouterr().out


def test_a_small_file_cannot_unpack_into_a_large_one(tmp_path):
    np.savez_compressed(tmp_path / "layer_1.npz", np.zeros(20_000_000, dtype=np.float32))
    assert (tmp_path / "layer_1.npz").stat().st_size < 1_000_000
    with pytest.raises(BadFile, match="80000128 bytes"):
        read_vectors(tmp_path / "layer_1.npz")


def test_a_version_is_its_bytes(two):
    made = Vectors({"method": "mean_difference", "texts": [3, 4]}, two)
    again = Vectors({"texts": [3, 4], "method": "mean_difference"}, dict(reversed(two.items())))
    assert made.digest == again.digest
    assert Vectors({"method": "x"}, two).digest != made.digest
    back = Vectors.read(made.data)
    assert equal(back.vectors, two) and back.header == made.header and back.digest == made.digest


def test_a_file_of_ours_can_be_given_as_any_other(tmp_path, two):
    (tmp_path / "v.safetensors").write_bytes(Vectors({}, two).data)
    assert equal(read_vectors(tmp_path / "v.safetensors"), two)


def test_what_is_not_ours_is_refused(tmp_path, two):
    save_file(two, tmp_path / "a", metadata={"header": json.dumps({"format": 9})})
    for data in (b"", b"x" * 100, (tmp_path / "a").read_bytes()):
        with pytest.raises(BadVector):
            Vectors.read(data)
    for vectors in ({}, {"lm.layers.1.mlp": torch.ones(D)}, {"nowhere": torch.ones(D)}):
        with pytest.raises(BadVector):
            Vectors({}, vectors)
