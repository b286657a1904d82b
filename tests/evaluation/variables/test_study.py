"""Studies on models that can do the task: where the variable sits, beside what cannot tell it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.behaviours.pairs import Dropped
from evaluation.behaviours.swaps import PreparedSwaps, prepare_swaps
from evaluation.variables.benchmark import IOI_UNITS, as_benchmark, benchmark_recipe, placed
from evaluation.variables.errors import BadStudy, NoFeatures, NothingKept, UnknownUnit
from evaluation.variables.featurizers import FULL
from evaluation.variables.heatmap import plot
from evaluation.variables.objective import contains, contains_word, same_number
from evaluation.variables.score import accuracies, competent, greedy, spelled
from evaluation.variables.settings import Featurizing, Recipe, VariableStudy
from evaluation.variables.study import study
from evaluation.variables.surface import Surface, cell, refused
from evaluation.variables.trials import Trial, Trials
from evaluation.variables.units import Unit
from service.vocabularies import miniature
from steerers.readers import read
from tests.evaluation.variables.conftest import (
    drained,
    drawn,
    held_plainly,
    swapped_plainly,
    tabled,
)


def test_the_letter_is_found_where_it_sits_and_beats_its_controls(found):
    early, late = found.found.cells
    assert (early.layer, late.layer) == (0, 5)
    assert late.value >= 0.9 and late.low > 0.75
    assert early.value <= 0.1
    assert found.no_op == {"answerPosition": 0.0}
    random = found.controls["random_features"].cells[1]
    assert random.value <= 0.1 and random.features == late.features == 8
    assert found.controls["full"].cells[1].value >= 0.9
    # One set in which the pointer moves with the letter cannot tell them apart, and says so.
    assert found.indistinct == {"answerPosition": ("answer_pointer",)}
    assert found.trained == found.scored == 30 and found.kept == 60


def test_a_report_is_plain_json_and_says_what_made_it(found, letters):
    told = json.loads(json.dumps(found.as_dict()))
    assert told["iia"]["5"]["last_token"]["answerPosition"] == found.found.cells[1].value
    assert told["mean"] == pytest.approx(np.mean([c.value for c in found.found.cells]))
    assert told["best"]["units"] == ["ResidualStream(Layer-5,Token-last_token)"]
    assert told["kept"] + len(told["dropped"]) == len(letters.kept) + len(letters.dropped)
    assert set(told["control"]) == {"full", "random_features", "no_op"}
    assert set(told["versions"]) == {"tiller", "torch", "transformers"}
    assert told["cost"]["backwards"] == 2 * 3 * 2  # handles x epochs x batches


def test_a_study_is_the_same_for_the_same_seed(miniature_lm, letters, found):
    again = drained(study(miniature_lm, letters, found.settings))
    assert again.found == found.found and again.controls == found.controls
    other = drained(study(miniature_lm, letters, replace(found.settings, seed=1)))
    one, two = (r.featurizers[1][1][0].features.rotation for r in (found, other))
    assert not torch.allclose(one, two, atol=1e-3)


def test_a_study_leaves_its_model_as_it_was(miniature_lm, found):
    assert found is not None
    modules = list(miniature_lm.modules["lm"].modules())
    assert not any(p.requires_grad for m in modules for p in m.parameters())
    layers = miniature_lm.family.decoder(miniature_lm).layers
    assert {len(layer.self_attn.o_proj._forward_pre_hooks) for layer in layers} == {0}


def test_rows_that_bring_their_own_test_are_not_split(miniature_lm, letters):
    train = PreparedSwaps(kept=letters.kept[:30], dropped=(Dropped(row=1, reason="why"),))
    test = PreparedSwaps(kept=letters.kept[30:50], dropped=(Dropped(row=0, reason="also"),))
    asked = VariableStudy(
        variable="answer",
        units=(Unit(layer=5, position="last_token"),),
        featurizer=Featurizing(kind="dbm"),
        recipe=Recipe(epochs=2, batch=15),
        controls=(),
    )
    found = drained(study(miniature_lm, train, asked, held_out=test))
    assert (found.trained, found.scored) == (30, 20)
    assert [(d.row, d.reason) for d in found.dropped] == [(1, "why"), (31, "also")]
    assert found.found.best.value >= 0.9 and not found.controls and not found.no_op


def test_a_mask_that_chooses_nothing_is_refused_not_scored(miniature_lm, letters):
    asked = VariableStudy(
        variable="answer",
        # Behind the last layer other tokens than the last one touch nothing.
        units=(Unit(layer=5, position="correct_symbol"),),
        featurizer=Featurizing(kind="dbm"),
        recipe=Recipe(epochs=1, batch=20),
    )
    with pytest.raises(NoFeatures):
        drained(study(miniature_lm, letters, asked))
    both = replace(asked, units=(*asked.units, Unit(layer=5, position="last_token")))
    found = drained(study(miniature_lm, letters, both))
    nothing, something = found.found.cells
    assert nothing.value is None and "no feature" in nothing.refused
    assert something.value is not None
    assert "correct_symbol" not in found.as_dict()["iia"]["5"]


@pytest.mark.parametrize("kind", ["pca", "svd", "dbm_pca", "dbm_svd"])
def test_principal_directions_carry_the_letter(miniature_lm, letters, kind):
    asked = VariableStudy(
        variable="answer",
        units=(Unit(layer=5, position="last_token"),),
        featurizer=Featurizing(kind=kind, n=24),
        recipe=Recipe(epochs=3, batch=20),
    )
    found = drained(study(miniature_lm, letters, asked))
    assert found.found.best.value > found.controls["random_features"].best.value + 0.3


def test_an_sae_s_features_are_swapped_and_chosen(miniature_lm, letters):
    sae = read("miniature/weights/saes/block-4-topk")
    asked = VariableStudy(
        variable="answer",
        positions=("last_token",),
        featurizer=Featurizing(kind="dbm_sae", saes=("mine",)),
        recipe=Recipe(epochs=3, batch=20),
    )
    found = drained(study(miniature_lm, letters, asked, dictionaries={"mine": sae}))
    (only,) = found.found.cells
    assert only.layer == 4 and 0 < only.features < sae.features
    assert only.as_dict()["saes"] == [sae.id]
    both = replace(asked, featurizer=Featurizing(kind="sae", saes=("mine", "other")))
    with pytest.raises(BadStudy, match="both read"):
        drained(study(miniature_lm, letters, both, dictionaries={"mine": sae, "other": sae}))
    assert only.value > found.controls["random_features"].cells[0].value + 0.3
    named = replace(asked, featurizer=Featurizing(kind="sae", saes=("mine",), features=(0, 1)))
    (two,) = drained(study(miniature_lm, letters, named, dictionaries={"mine": sae})).found.cells
    assert two.features == 2 and two.value < 0.2
    with pytest.raises(BadStudy, match="no SAE"):
        drained(study(miniature_lm, letters, named))


def test_heads_are_swapped_jointly_and_scored_by_squared_error(miniature_lm):
    told = miniature().behaviours()["ioi"].swaps(48, seed=2)
    swaps = prepare_swaps(told, miniature_lm)
    heads = tuple(Unit(layer=i, head=h, position="all") for i in (4, 5) for h in range(6))
    asked = VariableStudy(
        variable="output_token",
        units=heads,
        jointly=True,
        metric="logit_difference",
        featurizer=Featurizing(kind="das", n=8),
        recipe=Recipe(epochs=3, batch=12, rate=0.03),
    )
    found = drained(study(miniature_lm, swaps, asked))
    (only,) = found.found.cells
    assert found.found.lower and only.features == 12 * 8
    assert set(only.values) == {"s1_io_flip", "s2_io_flip", "s1_ioi_flip_s2_ioi_flip"}
    # The token decides the difference of the logits, and these heads carry it.
    assert found.coefficients.token > 1
    doing_nothing = np.mean(list(found.no_op.values()))
    assert only.value < doing_nothing
    assert found.controls["random_features"].best.value > only.value


def test_what_does_not_fit_is_refused_by_name(miniature_lm, letters):
    few = replace(letters, kept=letters.kept[:4])

    def asked(**stated):
        return drained(study(miniature_lm, few, VariableStudy(**stated)))

    with pytest.raises(UnknownUnit, match="has 6 layers"):
        asked(variable="answer", units=(Unit(layer=6, position="last_token"),))
    with pytest.raises(UnknownUnit, match="6 heads"):
        asked(variable="answer", units=(Unit(layer=1, head=6, position="last_token"),))
    with pytest.raises(NothingKept, match="no position nowhere"):
        asked(variable="answer", positions=("nowhere",))
    with pytest.raises(NothingKept, match="nothing is expected when colour"):
        asked(variable="colour")
    with pytest.raises(BadStudy, match="no distractor"):
        asked(variable="answer", metric="logit_difference")
    with pytest.raises(BadStudy, match="193 directions"):
        asked(variable="answer", featurizer=Featurizing(kind="das", n=193), layers=(0,))
    with pytest.raises(NothingKept, match="there are no interchanges"):
        drained(
            study(
                miniature_lm, PreparedSwaps(kept=(), dropped=()), VariableStudy(variable="answer")
            )
        )


def test_only_rows_that_the_model_answers_rightly_are_kept(llama):
    swaps = drawn(llama)
    said = greedy(llama, [s.base for s in swaps], 2)
    others = greedy(llama, [s.counterfactual for s in swaps], 2)
    told = [
        replace(s, base_answer_text=a, counterfactual_answer_text=b)
        for s, a, b in zip(swaps, said, others, strict=True)
    ]
    told[1] = replace(told[1], base_answer_text="§")
    told[2] = replace(told[2], counterfactual_answer_text="§")
    found = competent(llama, told, 2, contains)
    assert found.kept == (told[0],)
    assert [d.row for d in found.dropped] == [1, 2]
    assert found.dropped[1].reason.startswith("the counterfactual")


def test_what_is_said_under_a_swap_is_the_library_s_greedy_answer(llama):
    swaps = drawn(llama)
    unit = Unit(layer=1, position="mid")
    said = []
    for swap in swaps:
        ids = list(swap.base)
        here, there = swap.positions["mid"]
        source = held_plainly(llama, swap.counterfactual, unit, there)
        for _ in range(3):
            with torch.no_grad():
                logits = swapped_plainly(llama, ids, [(unit, here, lambda _, s=source: s)])
            ids.append(int(logits[-1].argmax()))
        said.append(spelled(llama, swap.base, ids[len(swap.base) :]))
    told = [replace(s, expected_text={"x": text}) for s, text in zip(swaps, said, strict=True)]
    told[1] = replace(told[1], expected_text={"x": "§"})
    right = Trials(hosted=llama, table=tabled(told), units=(unit,))
    found = drained(accuracies(right, [Trial((unit,), (FULL,))], 3, contains))
    assert found.tolist() == [[1.0, 0.0, 1.0]]


def test_answers_are_compared_as_asked():
    assert contains(" A", "see A") and not contains(" A", "A")
    assert contains_word(" A", "A")
    assert same_number("091", "91.") and not same_number("91", "191") and not same_number("1", "x")
    assert same_number(" -5", "-5") and not same_number("-5", "5")
    # Rows that are sent may expect anything.
    assert same_number("", "x") and not same_number(" Paris", " 3")


def test_aggregates_are_means_over_sets_best_over_positions_means_over_layers():
    sets = ("a", "a", "b")
    grid = {(0, "p"): [1, 0, 0], (0, "q"): [0, 0, 1], (1, "p"): [0, 0, 0]}
    cells = [
        cell((Unit(layer=i, position=p),), np.array(v, dtype=float), sets, 2)
        for (i, p), v in grid.items()
    ]
    gone = refused((Unit(layer=1, position="q"),), "nothing")
    surface = Surface(cells=(*cells, gone))
    assert [c.value for c in cells] == [0.25, 0.5, 0.0]
    assert surface.per_layer == {0: 0.5, 1: 0.0} and surface.mean == 0.25
    assert surface.best is cells[1]
    lower = Surface(cells=tuple(cells), lower=True)
    assert lower.per_layer == {0: 0.25, 1: 0.0} and lower.best is cells[2]
    assert cells[1].low <= 0.5 <= cells[1].high


def test_the_benchmark_s_recipes():
    recipe, n = benchmark_recipe("4_answer_MCQA", "answer", "LlamaForCausalLM", 4096)
    assert (recipe.epochs, recipe.batch, recipe.rate, n) == (8, 64, 1e-2, 2048)
    recipe, n = benchmark_recipe("ioi_task", "output_token", "GPT2LMHeadModel", 64)
    assert (recipe.epochs, recipe.batch, recipe.rate, n) == (2, 1024, 1.0, 32)
    assert IOI_UNITS[2].name == "AttentionHead(Layer-8,Head-6,Token-all)"
    assert benchmark_recipe("ravel_task", "Country", "LlamaForCausalLM", 4096)[1] == 512


def test_the_heat_map_is_drawn_beside_its_controls(found, tmp_path):
    plot(found, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_benchmark_fills_in_what_is_left_open(miniature_lm):
    def asked(task, **more):
        return as_benchmark(VariableStudy(variable="answer", benchmark=task, **more), miniature_lm)

    plain = VariableStudy(variable="answer")
    assert as_benchmark(plain, miniature_lm) is plain
    mcqa = asked("4_answer_MCQA")
    assert (mcqa.recipe.epochs, mcqa.recipe.batch, mcqa.featurizer.n) == (8, 64, 96)
    assert mcqa.units == "sweep" and mcqa.metric == "iia"
    own = asked("ARC_easy", recipe=Recipe(epochs=3), featurizer=Featurizing(kind="das", n=2))
    assert (own.recipe.epochs, own.featurizer.n) == (3, 2)
    assert asked("arithmetic").checker == "same_number"
    assert asked("ravel_task").new_tokens == 2
    ioi = placed(VariableStudy(variable="output_token", benchmark="ioi_task"))
    assert (ioi.units, ioi.jointly, ioi.metric) == (IOI_UNITS, True, "logit_difference")
    confined = placed(VariableStudy(variable="output_token", benchmark="ioi_task", layers=(1,)))
    assert confined.units == "sweep" and confined.jointly
