"""Featurizers leave and come back: our own file, the benchmark's folder, a vector to steer with."""

import json
import pickle

import pytest
import torch
from torch import nn

from evaluation.variables.direction import direction, toward
from evaluation.variables.errors import (
    BadFeaturizers,
    BadStudy,
    NoFeatures,
    NothingKept,
    UnknownUnit,
)
from evaluation.variables.featurizers import FULL, Codes, Coordinates, Directions, Featurizer
from evaluation.variables.objective import Coefficients
from evaluation.variables.score import greedy
from evaluation.variables.stored import restored, stored
from evaluation.variables.submission import (
    export,
    export_coefficients,
    folder_name,
    read_folder,
    submission_bytes,
)
from evaluation.variables.units import Unit, width
from models.patch import Patch, Shift
from steerers.control_vectors import Vectors
from steerers.methods.control_vector import ControlVector, Direction
from tests.steerers.conftest import random_dictionary

D = 12
STREAM, HEAD = Unit(layer=5, position="last_token"), Unit(layer=7, position="all", head=3)


def turned(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(D, n, generator=generator, dtype=torch.float64)
    return Directions(rotation=torch.linalg.qr(drawn).Q.float())


def made():
    """One of each kind that can be submitted."""
    chosen = Featurizer(kind="dbm_pca", features=turned(6, 1), chosen=(0, 4))
    mask = Featurizer(kind="dbm", features=Coordinates(count=D), chosen=(2, 3))
    square = Featurizer(kind="das", features=turned(D, 2))
    units = [Unit(layer=i, position="last_token") for i in range(3)]
    rest = zip(units, (chosen, mask, square), strict=True)
    das = Featurizer(kind="das", features=turned(4))
    return [((STREAM, HEAD), (das, FULL)), *(((unit,), (f,)) for unit, f in rest)]


def pairs(some):
    return [pair for handle, featurizers in some for pair in zip(handle, featurizers, strict=True)]


def alike(one, two):
    generator = torch.Generator().manual_seed(5)
    base, source = (torch.randn(3, D, generator=generator) for _ in range(2))
    torch.testing.assert_close(one(base, source), two(base, source), atol=1e-5, rtol=1e-5)


def test_names_of_units_are_the_submissions():
    assert STREAM.name == "ResidualStream(Layer-5,Token-last_token)"
    assert HEAD.name == "AttentionHead(Layer-7,Head-3,Token-all)"
    assert Unit.parse(STREAM.name) == STREAM and Unit.parse(HEAD.name) == HEAD
    assert STREAM.site == "lm.block.5"
    for wrong in ("ResidualStream(Layer--1,Token-x)", "MLP(Layer-1,Token-x)", "x"):
        with pytest.raises(UnknownUnit):
            Unit.parse(wrong)
    with pytest.raises(UnknownUnit):
        _ = HEAD.site


def test_our_own_file_comes_back_and_is_the_same_bytes():
    sae = random_dictionary(D, features=20)
    coded = Featurizer(kind="sae", features=Codes(dictionary=sae), chosen=(3, 5))
    some = [*made(), ((Unit(layer=1, position="x"),), (coded,))]
    data = stored(some, {"base": "sha", "variable": "answer"})
    assert data == stored(some, {"variable": "answer", "base": "sha"})
    header, back = restored(data, {"toy": sae})
    assert header == {"base": "sha", "variable": "answer"}
    assert [handle for handle, _ in back] == [handle for handle, _ in some]
    for (_, one), (_, two) in zip(pairs(some), pairs(back), strict=True):
        assert (one.kind, one.chosen) == (two.kind, two.chosen)
        alike(one, two)
    with pytest.raises(BadFeaturizers, match="the SAE"):
        restored(data, {"toy": random_dictionary(D, features=20, seed=1)})
    with pytest.raises(BadFeaturizers):
        restored(b"no file at all, but long enough")


def test_a_submission_comes_back_as_it_left(tmp_path):
    folder = tmp_path / folder_name("4_answer_MCQA", "LlamaForCausalLM", "answer")
    assert folder.name == "4_answer_MCQA_LlamaForCausalLM_answer"
    some = made()
    written = export(some, folder, {unit: D for unit, _ in pairs(some)})
    assert len(written) == 3 * len(pairs(some)) == len(list(folder.iterdir()))
    told = submission_bytes(some)
    assert told <= sum(file.stat().st_size for file in written) <= told + 4096 * len(written)
    back = read_folder(folder)
    for unit, featurizer in pairs(some):
        # The benchmark's evaluator drops indices: all that is swapped must be the module's.
        assert back[unit].chosen is None
        assert json.loads((folder / f"{unit.name}_indices").read_text()) is None
        assert back[unit].count in (featurizer.count, None)
        alike(back[unit], featurizer)


def test_indices_of_other_submissions_are_read(tmp_path):
    export([((STREAM,), (Featurizer(kind="das", features=turned(4)),))], tmp_path, {STREAM: D})
    (tmp_path / f"{STREAM.name}_indices").write_text("[3, 1]")
    assert read_folder(tmp_path)[STREAM].chosen == (1, 3)


class Layer(nn.Module):
    """What an evaluator builds before it loads a state."""

    def __init__(self, rotation):
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(rotation))
        self.weight.data.copy_(rotation)


def test_a_submission_is_laid_out_as_evaluators_read_it(tmp_path):
    some = [((STREAM,), (Featurizer(kind="das", features=turned(4)),))]
    export(some, tmp_path, {STREAM: D})
    assert json.loads((tmp_path / f"{STREAM.name}_indices").read_text()) is None
    for end, kind in (
        ("featurizer", "SubspaceFeaturizerModule"),
        ("inverse_featurizer", "SubspaceInverseFeaturizerModule"),
    ):
        told = torch.load(tmp_path / f"{STREAM.name}_{end}", weights_only=True)
        info = told["model_info"]
        assert info[f"{end}_class"] == kind and info["n_features"] == 4
        assert set(info["additional_config"]) == {"rotation_matrix", "requires_grad"}
        module = nn.Module()
        module.rotate = nn.utils.parametrizations.orthogonal(
            Layer(info["additional_config"]["rotation_matrix"])
        )
        assert module.state_dict().keys() == told["state_dict"].keys()
        module.load_state_dict(told["state_dict"], strict=True)
        torch.testing.assert_close(module.rotate.weight, turned(4).rotation, atol=1e-5, rtol=1e-5)


def test_what_would_mean_something_else_is_not_submitted(tmp_path):
    nothing = Featurizer(kind="dbm", features=Coordinates(count=D), chosen=())
    with pytest.raises(NoFeatures):
        export([((STREAM,), (nothing,))], tmp_path / "a", {STREAM: D})
    coded = Featurizer(kind="sae", features=Codes(dictionary=random_dictionary(D, features=20)))
    with pytest.raises(BadFeaturizers, match="SAE"):
        export([((STREAM,), (coded,))], tmp_path / "b", {STREAM: D})
    assert not list(tmp_path.iterdir())


class Rude:
    def __reduce__(self):
        return (print, ("ran",))


def test_broken_and_foreign_folders_are_refused(tmp_path, capsys):
    def fresh(name):
        folder = tmp_path / name
        export([((STREAM,), (Featurizer(kind="das", features=turned(4)),))], folder, {STREAM: D})
        return folder, folder / f"{STREAM.name}_featurizer"

    with pytest.raises(BadFeaturizers, match="holds no file"):
        read_folder(tmp_path / "nowhere")
    folder, file = fresh("pickle")
    file.write_bytes(pickle.dumps(Rude(), protocol=2))
    with pytest.raises(BadFeaturizers, match="cannot be read"):
        read_folder(folder)
    assert "ran" not in capsys.readouterr().out
    folder, file = fresh("gone")
    file.unlink()
    with pytest.raises(BadFeaturizers, match="missing"):
        read_folder(folder)
    folder, file = fresh("foreign")
    told = torch.load(file, weights_only=True)
    told["model_info"]["featurizer_class"] = "OtherModule"
    torch.save(told, file)
    with pytest.raises(BadFeaturizers, match="OtherModule"):
        read_folder(folder)
    folder, file = fresh("torn")
    told = torch.load(file, weights_only=True)
    told["model_info"]["additional_config"]["rotation_matrix"] = turned(4, 9).rotation
    torch.save(told, file)
    with pytest.raises(BadFeaturizers, match="differ"):
        read_folder(folder)
    folder, _ = fresh("indices")
    (folder / f"{STREAM.name}_indices").write_text("[true]")
    with pytest.raises(BadFeaturizers, match="list of numbers"):
        read_folder(folder)
    (folder / f"{STREAM.name}_indices").write_text("[9]")
    with pytest.raises(BadStudy):
        read_folder(folder)


def test_coefficients_are_told_by_model(tmp_path):
    told = Coefficients(bias=0.048, token=0.768, position=2.005)
    export_coefficients(told, "Gemma2ForCausalLM", tmp_path / "ioi.json")
    assert json.loads((tmp_path / "ioi.json").read_text()) == {
        "Gemma2ForCausalLM": {"bias": 0.048, "token_coeff": 0.768, "position_coeff": 2.005}
    }


def test_a_learned_place_steers_towards_a_value(miniature_lm, letters, found):
    (unit,), (featurizer,) = found.featurizers[1]
    asked = [s for s in letters.kept if s.base_answer_text != " C"][:20]
    vectors = toward(miniature_lm, letters.kept, "answer", " C", unit=unit, featurizer=featurizer)
    assert vectors.header["base"]["fingerprint"] == miniature_lm.fingerprint
    vector = vectors.vectors["lm.block.5"]
    # It lies in the eight directions that were learned.
    w = featurizer.features.rotation
    torch.testing.assert_close(w @ (w.T @ vector), vector, atol=1e-3, rtol=1e-3)

    def said(patch):
        with miniature_lm.planned([patch] * len(asked)):
            prompts = [s.base for s in asked]
            rows = max(map(len, prompts))
            assert {len(p) for p in prompts} == {rows}
            ids = torch.tensor(prompts)
            return miniature_lm.family.logits(miniature_lm, ids)[:, -1].argmax(-1).tolist()

    (c,) = {s.expected["answer"][0] for s in letters.kept if s.expected_text["answer"] == " C"}
    steered = said(Patch((Shift(site="lm.block.5", vector=2 * vector, positions="all"),)))
    assert sum(token == c for token in steered) / len(asked) > 0.8
    assert sum(token == c for token in said(Patch())) == 0
    # The file that keeps it is one that the steerer takes.
    again = Vectors.read(vectors.data)
    plan = ControlVector(vector="letter", positions="all").plan(
        miniature_lm, {"letter": Direction(vectors=again, stream_norms={"lm.block.5": 400.0})}
    )
    assert (
        plan.patch.digest
        == Patch((Shift(site="lm.block.5", vector=vector, positions="all"),)).digest
    )


def test_directions_one_by_one(miniature_lm, letters, found):
    (unit,), (featurizer,) = found.featurizers[1]
    one = direction(miniature_lm, "answer", unit, featurizer, 3).vectors["lm.block.5"]
    torch.testing.assert_close(one, featurizer.features.rotation[:, 3])
    assert len(one) == width(miniature_lm, unit)
    with pytest.raises(BadStudy):
        direction(miniature_lm, "answer", unit, featurizer, 8)
    with pytest.raises(BadStudy):
        direction(miniature_lm, "answer", unit, FULL)
    with pytest.raises(NothingKept, match="expects"):
        toward(miniature_lm, letters.kept, "answer", " Z", unit=unit, featurizer=featurizer)
    with pytest.raises(NoFeatures):
        toward(
            miniature_lm,
            letters.kept,
            "answer",
            " C",
            unit=unit,
            featurizer=featurizer.choosing(()),
        )
    assert greedy(miniature_lm, [letters.kept[0].base], 1) == [letters.kept[0].base_answer_text]
