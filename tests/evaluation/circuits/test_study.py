"""The whole evaluation, on the miniature's language model: who is given the thing?"""

import json
import random
from pathlib import Path

import pytest
import torch

from evaluation.behaviours.pairs import Pair, Prepared, prepare
from evaluation.circuits.drawing import draw_circuit, draw_curve
from evaluation.circuits.errors import BadCircuit, NoGraph, TooFewPairs
from evaluation.circuits.selection import select
from evaluation.circuits.study import Circuit, read_importances, split, study
from miniature.prose import indirect_object
from models.loading import load

FEW = (0.02, 0.05, 0.2, 1.0)


@pytest.fixture(scope="module")
def miniature():

    import miniature.tasks

    folder = Path(miniature.tasks.__file__).parent / "weights" / "language"
    return load("miniature-lm", folder)


@pytest.fixture(scope="module")
def indirect_objects(miniature):
    """The second subject becomes the other person, whom the clean sentence gives the thing."""
    draw, pairs = random.Random(0), []  # noqa: S311
    held_out = sorted(map(sorted, indirect_object.held_out_pairs()))
    for _ in range(24):
        a, b = draw.choice(held_out)
        seed = draw.random()
        clean, corrupted = (
            indirect_object.prompt(a, b, who, random.Random(seed))  # noqa: S311
            for who in (a, b)
        )
        pairs.append(Pair(clean=clean, corrupted=corrupted, correct=f" {b}", incorrect=f" {a}"))
    return prepare(pairs, miniature)


@pytest.fixture(scope="module")
def report(miniature, indirect_objects, drain):
    return drain(study(miniature, indirect_objects, Circuit(sizes=FEW)))


def test_the_circuit_of_the_indirect_object_is_found(report):
    found = report.found
    assert found.inconclusive is None
    assert found.m_full > 2 and found.m_empty < -2
    by_size = {p.k: p for p in found.curve}
    assert by_size[1.0].f_absolute == pytest.approx(1, abs=1e-6)
    assert by_size[0.2].f_absolute == pytest.approx(1, abs=0.05)
    assert by_size[0.05].f_absolute == pytest.approx(1, abs=0.1)
    assert found.cmd < 0.05
    assert found.cpr == pytest.approx(1, abs=0.05)


def test_it_is_far_from_chance(report, miniature, indirect_objects, drain):
    chance = drain(study(miniature, indirect_objects, Circuit(sizes=FEW, method="random")))
    # With f = 0 below 100 % these four sizes give 0.58 and 0.4.
    assert report.found.cmd < 0.05 < 0.5 < chance.found.cmd
    assert chance.found.cpr < 0.5 < report.found.cpr


def test_the_report_says_what_was_done(report, indirect_objects):
    told = json.loads(json.dumps(report.as_dict()))
    kept = len(indirect_objects.kept)
    assert told["found_by"] + told["judged_by"] == told["kept"] == kept
    assert len(told["dropped"]) == 24 - kept
    assert told["floor"] == {"cpr": 0.4, "cmd": 0.58}
    assert told["settings"]["method"] == "eap-ig-inputs"
    assert {"k", "n_edges", "f_signed", "f_absolute"} <= told["curve"][0].keys()
    names = [node["name"] for node in told["top_nodes"]]
    assert set(names) <= set(report.graph.source_names)
    assert 0 < sum(node["share"] for node in told["top_nodes"]) <= 1
    finders, judges = told["found_by"], told["judged_by"]
    assert told["cost"]["backwards"] == 5 * finders
    assert told["cost"]["forwards"] == 7 * finders + (2 + 2 * 3) * judges
    assert told["cost"]["seconds"] > 0 and told["cost"]["peak_bytes"] > 1e6


def test_importances_come_back(report):
    graph, scores, header = read_importances(report.importances())
    assert graph == report.graph
    torch.testing.assert_close(scores.edges, report.scores.edges.float().double())
    torch.testing.assert_close(scores.nodes, report.scores.nodes.float().double())
    assert header["settings"]["method"] == "eap-ig-inputs"
    assert report.importances() == report.importances()
    with pytest.raises(ValueError, match=r"such|safetensors"):
        read_importances(b"nothing of the kind")


def test_the_same_seed_gives_the_same_report(report, miniature, indirect_objects, drain):
    again = drain(study(miniature, indirect_objects, Circuit(sizes=FEW)))
    assert again.found == report.found
    assert torch.equal(again.scores.edges, report.scores.edges)


def test_pictures_are_drawn(report, tmp_path):
    graph, scores = report.graph, report.scores
    circuit = select(graph, scores, int(0.02 * graph.edges), level="edge", absolute=True)
    lines = draw_circuit(graph, scores, circuit, tmp_path / "circuit.png", "Who gets it?")
    assert 10 < lines <= int(circuit.edges.sum())
    draw_curve(report.found, tmp_path / "curve.png")
    draw_curve(report.found, tmp_path / "curve.svg")
    for name in ("circuit.png", "curve.png", "curve.svg"):
        assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize(
    "settings",
    [
        Circuit(method="eap", level="node"),
        Circuit(level="neuron", steps=2),
        Circuit(method="eap", ablation="mean", greedy=True),
        Circuit(method="information-flow-routes"),
        Circuit(method="clean-corrupted", parity=True, held_out=0),
    ],
    ids=lambda s: f"{s.method}-{s.level}-{s.ablation}",
)
def test_every_kind_of_question_has_an_answer(miniature, indirect_objects, drain, settings):
    few = Prepared(kept=indirect_objects.kept[:8], dropped=())
    found = drain(
        study(miniature, few, Circuit(**{**vars(settings), "sizes": (0.05, 0.3, 1.0)}))
    ).found
    assert found.m_full > found.m_empty
    assert found.curve[-1].f_signed == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        Circuit(method="ugs", level="node"),
        Circuit(method="exact", level="neuron"),
        Circuit(method="eap-ig-inputs", ablation="zero"),
        Circuit(method="exact", level="node", ablation="zero"),
        Circuit(level="node", greedy=True),
        Circuit(sizes=(0.5, 0.1)),
    ],
)
def test_what_contradicts_itself_is_refused(miniature, indirect_objects, settings):
    with pytest.raises(BadCircuit):
        next(study(miniature, indirect_objects, settings))


def test_too_few_pairs_are_refused(miniature, indirect_objects):
    few = Prepared(kept=indirect_objects.kept[:3], dropped=())
    with pytest.raises(TooFewPairs):
        next(study(miniature, few))


def test_pairs_that_find_do_not_judge(indirect_objects):
    finders, judges = split(indirect_objects.kept, Circuit(held_out=0.25))
    assert not set(finders) & set(judges)
    assert len(judges) == round(0.25 * len(indirect_objects.kept))
    assert split(indirect_objects.kept, Circuit(held_out=0))[0] == indirect_objects.kept


def test_a_model_that_draws_has_no_graph(tiny_sd, indirect_objects):
    with pytest.raises(NoGraph):
        next(study(tiny_sd, indirect_objects))
