"""Counts, names and indices of the graph; pruning and selection on it."""

import pytest
import torch

from evaluation.circuits.attribution import Scores
from evaluation.circuits.errors import UnknownEdge
from evaluation.circuits.graph import Graph
from evaluation.circuits.selection import Subgraph, full, items, prune, select

SMALL = Graph(layers=2, heads=2, width=4)


@pytest.mark.parametrize(
    ("layers", "heads", "edges"),
    [(12, 12, 32_491), (24, 14, 179_749), (26, 8, 74_218), (32, 32, 1_592_881), (6, 4, 1_108)],
)
def test_published_models_have_the_published_number_of_edges(layers, heads, edges):
    graph = Graph(layers=layers, heads=heads, width=8)
    assert graph.edges == edges == int(graph.real.sum())
    assert graph.sources == len(graph.source_names)
    assert graph.destinations == len(graph.destination_names)


def test_names_and_indices_go_both_ways():
    names = {name: (u, v) for name, u, v in SMALL.named_edges()}
    assert len(names) == SMALL.edges
    assert all(SMALL.edge(name) == pair for name, pair in names.items())
    assert SMALL.edge("input->a0.h1<k>") == (0, 3)
    assert SMALL.edge("m1->logits") == (6, 14)
    assert names["a0.h1->m0"] == (SMALL.head(0, 1), SMALL.into_mlp(0))
    assert SMALL.destination_names[SMALL.into(1, 0, "v")] == "a1.h0<v>"
    assert [SMALL.layer_of(u) for u in range(SMALL.sources)] == [-1, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    "name", ["m1->m0", "a0.h0->a0.h1<q>", "m0->m0", "x->m0", "m0", "->", "m0->a1.h2<q>"]
)
def test_what_goes_backwards_or_nowhere_is_no_edge(name):
    with pytest.raises(UnknownEdge):
        SMALL.edge(name)


def test_beside_its_heads_an_mlp_does_not_read_them():
    beside = Graph(layers=2, heads=2, width=4, parallel=True)
    assert beside.edges == SMALL.edges - 4
    with pytest.raises(UnknownEdge):
        beside.edge("a0.h0->m0")


def edges(*names):
    found = torch.zeros(SMALL.sources, SMALL.destinations, dtype=torch.bool)
    for name in names:
        found[SMALL.edge(name)] = True
    return found


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (["input->a0.h0<q>"], []),
        (["a0.h0->logits"], []),
        (["input->a0.h0<q>", "a0.h0->logits"], ["input->a0.h0<q>", "a0.h0->logits"]),
        (["input->m0", "m0->a1.h0<v>", "a1.h0->m1"], []),
        (["a0.h1->m0", "m0->m1", "m1->logits", "input->logits"], ["input->logits"]),
    ],
)
def test_pruning_goes_on_until_nothing_dangles(given, left):
    found = prune(SMALL, edges(*given))
    assert torch.equal(found, edges(*left))
    assert torch.equal(prune(SMALL, found), found)


def test_pruning_drops_what_is_no_edge():
    everything = torch.ones(SMALL.sources, SMALL.destinations, dtype=torch.bool)
    assert torch.equal(prune(SMALL, everything), SMALL.real)


def scored(**named):
    found = torch.zeros(SMALL.sources, SMALL.destinations, dtype=torch.float64)
    for name, score in named.items():
        found[SMALL.edge(name)] = score
    return found


SCORES = Scores(
    edges=scored(**{"input->m0": 3.0, "m0->logits": -5.0, "input->logits": 1.0, "m0->m1": 4.0}),
    nodes=torch.tensor([5.0, 1.0, -2.0, torch.nan, 3.0, 0.0, 0.5], dtype=torch.float64),
)


def test_signed_and_absolute_scores_select_different_edges():
    def top(n, *, absolute):
        return select(SMALL, SCORES, n, level="edge", absolute=absolute).edges

    assert torch.equal(top(3, absolute=True), edges("input->m0", "m0->logits"))
    assert torch.equal(top(3, absolute=False), edges("input->logits"))  # m0 leads nowhere
    assert torch.equal(top(SMALL.edges, absolute=False), SMALL.real)


def test_greedy_grows_from_the_logits():
    def grown(n):
        return select(SMALL, SCORES, n, level="edge", absolute=True, way="greedy").edges

    assert torch.equal(grown(2), edges("input->m0", "m0->logits"))
    # m0->m1 is better, but nothing reaches m1 yet.
    assert torch.equal(grown(3), edges("input->m0", "m0->logits", "input->logits"))


def test_equal_scores_go_by_index():
    same = Scores(edges=torch.ones(SMALL.sources, SMALL.destinations, dtype=torch.float64))
    few = select(SMALL, same, 20, level="edge", absolute=False)
    assert torch.equal(few.edges, prune(SMALL, _first(20)))
    grown = select(SMALL, same, 3, level="edge", absolute=False, way="greedy")
    # input->logits, a0.h0->logits and, opened by the latter, input->a0.h0<q>.
    assert torch.equal(grown.edges, edges("input->logits", "a0.h0->logits", "input->a0.h0<q>"))


def _first(n):
    found = torch.zeros(SMALL.real.numel(), dtype=torch.bool)
    found[SMALL.real.flatten().nonzero().flatten()[:n]] = True
    return found.view(SMALL.real.shape)


def test_a_kept_node_has_all_its_outgoing_edges_and_unscored_ones_stay():
    assert items(SMALL, SCORES, "node") == 6
    two = select(SMALL, SCORES, 2, level="node", absolute=False)
    assert two.sources.nonzero().flatten().tolist() == [0, 3, 4]
    both = SMALL.real.clone()
    both[[1, 2, 5, 6]] = False
    assert torch.equal(two.edges, prune(SMALL, both))
    assert two.edges[0].sum() == 1 + 3 + 1  # into m0, a1.h0<q,k,v> and the logits


def test_a_neuron_level_circuit_counts_the_share_that_is_kept():
    neurons = torch.zeros(SMALL.sources, SMALL.width, dtype=torch.float64)
    neurons[0] = torch.tensor([4.0, 3.0, -9.0, 0.0])
    neurons[6, 1] = 2.0
    scores = Scores(edges=SCORES.edges, neurons=neurons)
    assert items(SMALL, scores, "neuron") == SMALL.sources * SMALL.width
    found = select(SMALL, scores, 3, level="neuron", absolute=False)
    assert found.neurons[0].tolist() == [True, True, False, False]
    assert torch.equal(found.edges, edges("input->m1", "input->logits", "m1->logits"))
    assert found.size(SMALL) == 2 * 0.5 + 0.25
    assert select(SMALL, scores, 1, level="neuron", absolute=True).neurons[0].tolist() == [
        False,
        False,
        True,
        False,
    ]


def test_the_full_circuit_counts_real_edges_only():
    assert full(SMALL).size(SMALL) == SMALL.edges
    assert Subgraph(torch.zeros_like(SMALL.real)).size(SMALL) == 0
