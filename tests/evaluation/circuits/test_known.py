"""A circuit is planted in a small model; good scores find it, chance does not."""

import pytest
import torch

from evaluation.behaviours.pairs import PairIds
from evaluation.circuits.anatomy import find_anatomy
from evaluation.circuits.attribution import Gradually, Scores, attribute, random_scores
from evaluation.circuits.batches import in_batches
from evaluation.circuits.exact import patch_exactly
from evaluation.circuits.flow_routes import flow_routes
from evaluation.circuits.graph import Graph
from evaluation.circuits.known import auroc, edges_between
from evaluation.circuits.sampled_masks import Sampling, sampled_masks
from models.loading import load

AWAKE = ("input", "a0.h2", "a1.h1", "m1")


@pytest.fixture(scope="module")
def planted(tmp_path_factory, save_small):
    """A three-layer GPT-2 in which all but a few nodes write nothing."""
    hosted = load("planted", save_small("gpt2", tmp_path_factory.mktemp("planted"), layers=3))
    anatomy = find_anatomy(hosted)
    with torch.no_grad():
        for index, layer in enumerate(anatomy.layers):
            if f"m{index}" not in AWAKE:
                layer.mlp.c_proj.weight.zero_()
            for head in range(anatomy.graph.heads):
                if f"a{index}.h{head}" not in AWAKE:
                    layer.out.weight[:, head * 8 : (head + 1) * 8] = 0
    return anatomy


@pytest.fixture(scope="module")
def prompts(planted):
    draw, found = torch.Generator().manual_seed(4), []
    for i in range(24):
        clean = torch.randint(5, 90, (7,), generator=draw).tolist()
        corrupted = torch.randint(5, 90, (7,), generator=draw).tolist()
        found.append(
            PairIds(clean=tuple(clean), corrupted=tuple(corrupted), correct=5 + i, incorrect=40 + i)
        )
    return list(in_batches(found, 512, planted.device))


def test_gradients_find_what_was_planted(planted, prompts, drain):
    graph = planted.graph
    known = edges_between(graph, AWAKE)
    assert 8 < int(known.sum()) < 0.2 * graph.edges
    scores = {
        "eap": drain(attribute(planted, prompts, Gradually(method="eap"))),
        "eap-ig-inputs": drain(attribute(planted, prompts, Gradually())),
        "exact": drain(patch_exactly(planted, prompts[:1])),
        "flow routes": drain(flow_routes(planted, prompts)),
    }
    areas = {name: auroc(graph, some, known) for name, some in scores.items()}
    assert min(areas.values()) > 0.9, areas
    chance = [auroc(graph, random_scores(planted, seed), known) for seed in range(8)]
    assert 0.2 < sum(chance) / len(chance) < 0.7
    assert max(chance) < min(areas.values())


def test_learned_masks_find_it_too(planted, prompts):
    graph, losses = planted.graph, []
    known = edges_between(graph, AWAKE)
    steps = sampled_masks(planted, prompts, Sampling(passes=24, rate=5e-2, rows=8))
    while True:
        try:
            losses.append(next(steps).values["loss"])
        except StopIteration as end:
            scores = end.value
            break
    kept, others = scores.edges[known], scores.edges[graph.real & ~known]
    assert auroc(graph, scores, known) > 0.8
    assert kept.mean() > 2 * others.mean()
    assert sum(losses[-10:]) < sum(losses[:10])


def test_the_area_is_that_of_ten_greedy_circuits():
    graph = Graph(layers=1, heads=1, width=4)  # input, a0.h0, m0; 8 edges
    known = edges_between(graph, ["input", "m0"])
    assert int(known.sum()) == 3
    perfect = Scores(edges=known.double())
    # Sizes 1 .. 8: 1 1 1 1 1 1 1 2 4 8 edges; greedy takes ties by index.
    assert 0.3 < auroc(graph, perfect, known) <= 1.0
    wrong = Scores(edges=(graph.real & ~known).double())
    assert auroc(graph, wrong, known) < auroc(graph, perfect, known)
