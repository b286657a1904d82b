"""The reference's own ways, each against what its specification says, written out."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from evaluation.behaviours.pairs import Prepared
from evaluation.circuits.anatomy import find_anatomy
from evaluation.circuits.attribution import Gradually, Scores, attribute, random_scores
from evaluation.circuits.batches import in_batches
from evaluation.circuits.errors import BadCircuit
from evaluation.circuits.flow_routes import flow_routes
from evaluation.circuits.graph import Graph
from evaluation.circuits.optimal import Learning, optimal_vectors
from evaluation.circuits.parity import Quirk, quirks
from evaluation.circuits.points import Cost
from evaluation.circuits.replacements import mean_vectors, replacement
from evaluation.circuits.running import know, margins
from evaluation.circuits.selection import prune, prune_early, select
from evaluation.circuits.study import Circuit, study
from models.loading import load

SMALL = Graph(layers=2, heads=2, width=4)
CHAIN = Graph(layers=4, heads=1, width=4)


def edges_of(graph, *names):
    found = torch.zeros(graph.sources, graph.destinations, dtype=torch.bool)
    for name in names:
        found[graph.edge(name)] = True
    return found


class Dangling:
    """Sources and edges as sets of names; pruned round by round until no source leaves."""

    def __init__(self, graph, edges):
        self.edges = {
            (graph.source_names[u], graph.destination_names[v].partition("<")[0], (u, v))
            for u, v in edges.nonzero().tolist()
        }

    def alive(self):
        out, into = {u for u, _, _ in self.edges}, {v for _, v, _ in self.edges}
        return out & (into | {"input"})

    def round(self):
        alive = self.alive()
        self.edges = {
            e for e in self.edges if e[0] in alive and (e[1] in alive or e[1] == "logits")
        }
        return alive

    def early(self, *, grown):
        inside = {u for u, _, _ in self.edges} if grown else self.alive()
        while (now := self.round()) != inside:
            inside = now
        return {place for _, _, place in self.edges}


def places(edges):
    return {tuple(place) for place in edges.nonzero().tolist()}


def test_the_reference_stops_pruning_one_round_early():
    # m0 leads to m1 alone, which leads nowhere: the edge goes, and m0 stays with what feeds it.
    taken = edges_of(CHAIN, "input->m0", "m0->m1", "m1->m2", "input->logits")
    assert places(prune(CHAIN, taken)) == places(edges_of(CHAIN, "input->logits"))
    left = prune_early(CHAIN, taken, grown=False)
    assert places(left) == places(edges_of(CHAIN, "input->m0", "m0->m1", "input->logits"))
    # Grown circuits begin with every source of an edge, fed or not, and look again.
    unfed = edges_of(CHAIN, "m1->m2", "m2->m3", "m3->logits", "input->logits")
    assert places(prune_early(CHAIN, unfed, grown=False)) != places(prune(CHAIN, unfed))


@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_early_pruning_is_rounds_of_sets(seed, grown):
    graph = Graph(layers=5, heads=2, width=4)
    draw = torch.Generator().manual_seed(seed)
    taken = graph.real & (torch.rand(graph.real.shape, generator=draw) < 0.03)
    found = prune_early(graph, taken, grown=grown)
    assert places(found) == Dangling(graph, taken).early(grown=grown)
    assert torch.equal(prune(graph, found), prune(graph, taken))


@pytest.mark.parametrize("way", ["top", "greedy"])
def test_faithfulness_does_not_depend_on_what_pruning_leaves(anatomies, pairs, way):
    anatomy = anatomies["gpt2"]
    graph = anatomy.graph
    (known,) = (know(anatomy, b, Cost()) for b in in_batches(pairs[:1], 64, anatomy.device))
    scores = random_scores(anatomy, 3)
    differed = 0
    for count in (10, 20, 30, 40):
        ours, theirs = (
            select(graph, scores, count, level="edge", absolute=False, way=way, parity=parity)
            for parity in ((), ("prune",))
        )
        differed += theirs.size(graph) > ours.size(graph)
        values = [margins(anatomy, known, circuit, Cost()) for circuit in (ours, theirs)]
        assert float((values[0] - values[1]).abs().max()) < 1e-10
    assert differed or way == "greedy"


def test_the_reference_counts_edges_that_do_not_exist():
    def size(scores, count, level):
        return select(
            SMALL, scores, count, level=level, absolute=False, parity=("edge-counts",)
        ).size(SMALL)

    nodes = torch.tensor([5.0, 1.0, 0.0, 3.0, 0.0, 0.0, 4.0], dtype=torch.float64)
    some = Scores(edges=torch.zeros(SMALL.real.shape, dtype=torch.float64), nodes=nodes)
    assert size(some, SMALL.sources, "node") == SMALL.sources * SMALL.destinations
    # input, m0 and m1, each to m0, m1 and the logits: nine, though m0->m0 and five more are none.
    assert size(some, 3, "node") == 9
    assert select(SMALL, some, 3, level="node", absolute=False).size(SMALL) == 2 + 1 + 3
    neurons = torch.zeros(SMALL.sources, SMALL.width, dtype=torch.float64)
    neurons[0, :2], neurons[6, 1] = 4.0, 2.0
    by_neuron = replace(some, neurons=neurons)
    assert size(by_neuron, 3, "neuron") == (0.5 + 0.25) * 2
    published = Graph(layers=12, heads=12, width=768)
    every = Scores(
        edges=torch.zeros(published.real.shape, dtype=torch.float64),
        nodes=torch.zeros(published.sources, dtype=torch.float64),
    )
    parity = ("edge-counts",)
    whole = select(published, every, published.sources, level="node", absolute=True, parity=parity)
    assert whole.size(published) == 69_865


def test_an_mlps_neurons_come_from_the_gradient_at_its_own_input(
    anatomies, batches, slow, close, drain
):
    anatomy, plainly = anatomies["gpt2"], slow(anatomies["gpt2"])
    graph, expected, batches = anatomy.graph, [], batches[:1]
    for layer in range(graph.layers):
        total = 0.0
        for batch in batches:
            clean, corrupted = (plainly.run(ids)[0] for ids in (batch.clean, batch.corrupted))
            change = corrupted[graph.mlp(layer)] - clean[graph.mlp(layer)]
            # d loss / d (what the MLP alone reads), one of the stream's dimensions at a time.
            slopes = []
            for i in range(graph.width):
                one = [torch.zeros_like(x) for x in clean]
                one[0] = torch.zeros_like(change)
                one[0][..., i] = change[..., i]
                slopes.append(plainly.slope(batch, one)[0, graph.into_mlp(layer)])
            total = total + torch.stack(slopes)
        expected.append(total)
    how = Gradually(method="eap", neurons=True, parity=frozenset({"mlp-nodes"}))
    found = drain(attribute(anatomy, batches, how))
    ours = drain(attribute(anatomy, batches, Gradually(method="eap", neurons=True)))
    mlps = [graph.mlp(layer) for layer in range(graph.layers)]
    close("gpt2", found.neurons[mlps], torch.stack(expected))
    close("gpt2", found.nodes[mlps], torch.stack(expected).sum(1))
    others = [u for u in range(graph.sources) if u not in mlps]
    assert torch.equal(found.neurons[others], ours.neurons[others])


@pytest.fixture(scope="module", params=["gpt2", "qwen2"])
def twins(request, tmp_path_factory, save_small):
    """A model with biases of values, and the same with folded biases and centred weights."""
    folder = tmp_path_factory.mktemp("twins") / request.param
    save_small(request.param, folder)
    found = []
    for _ in range(2):
        hosted = load(request.param, folder)
        model = hosted.modules["lm"].double()
        hosted.dtype = torch.float64
        draw = torch.Generator().manual_seed(5)
        for name, value in model.named_parameters():
            if "c_attn.bias" in name or "v_proj.bias" in name:
                value.data += 0.5 * torch.randn(value.shape, generator=draw).double()
        found.append(hosted)
    (_fold_gpt2 if request.param == "gpt2" else _fold_qwen2)(found[1].modules["lm"])
    return request.param, *map(find_anatomy, found)


@torch.no_grad()
def _fold_gpt2(model):
    """Whatever writes to the stream writes no mean, and values have no bias."""
    head = model.lm_head.weight.clone()
    for embedding in (model.transformer.wte, model.transformer.wpe):
        embedding.weight -= embedding.weight.mean(1, keepdim=True)
    model.lm_head.weight = nn.Parameter(head)
    for layer in model.transformer.h:
        into, out = layer.attn.c_attn, layer.attn.c_proj
        values = into.bias[-out.in_features :]
        out.bias += out.weight @ values
        values.zero_()
        for linear in (out, layer.mlp.c_proj):
            linear.weight -= linear.weight.mean(0)
            linear.bias -= linear.bias.mean()


@torch.no_grad()
def _fold_qwen2(model):
    """An RMSNorm reads the mean, so weights stay; values have no bias."""
    for layer in model.model.layers:
        attention = layer.self_attn
        groups = attention.num_key_value_groups
        values = attention.v_proj.bias.view(-1, attention.head_dim)
        every = values.repeat_interleave(groups, 0).flatten()
        attention.o_proj.bias = nn.Parameter(attention.o_proj.weight @ every)
        values.zero_()


@pytest.mark.parametrize("ablation", ["zero", "mean-reference", "patching"])
def test_folded_weights_score_as_a_folded_model_does(twins, batches, drain, close, ablation):
    kind, plain, folded = twins

    def scores(anatomy, *, behind_folded):
        other = replacement(anatomy, ablation, batches, Cost(), behind_folded=behind_folded)
        parity = frozenset({"folded-weights"} if behind_folded else ())
        how = Gradually(method="eap", neurons=True, parity=parity)
        return drain(attribute(anatomy, batches, how, other))

    ours, theirs = scores(plain, behind_folded=False), scores(plain, behind_folded=True)
    expected = scores(folded, behind_folded=False)
    close(kind, theirs.edges, expected.edges, times=10)
    close(kind, theirs.neurons, expected.neurons, times=10)
    changed = [
        float((a - b).abs().max() / b.abs().max())
        for a, b in ((ours.edges, expected.edges), (ours.neurons, expected.neurons))
    ]
    assert (changed[0] > 1e-2) == (ablation != "patching")
    assert (changed[1] > 1e-2) == (ablation != "patching" or kind == "gpt2")


def test_flow_routes_behind_folded_weights_are_those_of_a_folded_model(
    twins, batches, drain, close
):
    kind, plain, folded = twins
    expected = drain(flow_routes(folded, batches)).edges
    close(kind, drain(flow_routes(plain, batches, behind_folded=True)).edges, expected)
    assert (drain(flow_routes(plain, batches)).edges - expected).abs().max() > 1e-2


def test_the_reference_learns_from_sums(anatomies, batches, drain, close):
    anatomy = anatomies["gpt2"]
    how = Learning(steps=0, rows=2)
    found = drain(optimal_vectors(anatomy, batches, how, from_sums=True))
    tokens = sum(batch.clean.numel() for batch in batches)
    steps = sum(-(-len(batch.rows) // how.rows) for batch in batches)
    assert (tokens, steps) == (36, 3)
    close("gpt2", found, mean_vectors(anatomy, batches) * tokens / steps)
    close("gpt2", drain(optimal_vectors(anatomy, batches, how)), mean_vectors(anatomy, batches))


def test_all_is_what_changes_anything_and_a_name_in_vain_is_refused():
    assert quirks(False, "eap", "edge", "patching") == frozenset()
    assert quirks(True, "eap", "edge", "patching") == {"batch-weights", "prune"}
    nodes = {"batch-weights", "mlp-nodes", "node-integrals", "edge-counts"}
    assert quirks(True, "eap-ig-inputs", "node", "patching") == nodes
    assert quirks(True, "eap", "edge", "optimal") >= {"optimal-start"}
    assert quirks(True, "random", "edge", "patching") == {"prune"}
    assert quirks(("prune",), "ugs", "edge", "patching") == {"prune"}
    everywhere = {
        quirk
        for method in ("eap", "eap-ig-inputs", "eap-ig-activations", "random")
        for level in ("edge", "node", "neuron")
        for ablation in ("patching", "optimal")
        for quirk in quirks(True, method, level, ablation)
    }
    assert everywhere == set(get_args(Quirk))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (Circuit(parity=("mlp-nodes",)), "nodes and neurons"),
        (Circuit(level="node", parity=("prune",)), "circuits of edges"),
        (Circuit(parity=("edge-counts",)), "counts of circuits of nodes"),
        (Circuit(method="exact", parity=("batch-weights",)), "scores of eap"),
        (Circuit(level="node", parity=("held-embedding",)), "edges of eap-ig-activations"),
        (Circuit(method="eap", ablation="mean", parity=("folded-weights",)), "mean-reference"),
        (Circuit(method="eap", ablation="mean", parity=("optimal-start",)), "ablation optimal"),
    ],
)
def test_what_changes_nothing_is_refused(settings, problem):
    with pytest.raises(BadCircuit, match=problem) as refused:
        settings.check()
    assert refused.value.param == "parity"


def test_what_changes_nothing_in_the_model_is_refused(anatomies, pairs, drain):
    rows = Prepared(kept=tuple(pairs), dropped=())
    held = Circuit(method="eap-ig-activations", parity=("held-embedding",))
    with pytest.raises(BadCircuit, match="learned"):
        drain(study(anatomies["gpt2"].hosted, rows, held))
    folded = Circuit(method="information-flow-routes", parity=("folded-weights",))
    with pytest.raises(BadCircuit, match="neither"):
        drain(study(anatomies["llama"].hosted, rows, folded))
    everything = Circuit(method="information-flow-routes", parity=True, held_out=0, margin=0)
    assert "folded-weights" in everything.quirks
    found = drain(study(anatomies["llama"].hosted, rows, everything))
    assert found.as_dict()["parity"] == ["prune"]


@pytest.mark.parametrize(
    "settings",
    [
        Circuit(method="eap", parity=("prune", "batch-weights"), batch=2),
        Circuit(level="node", steps=1, parity=True),
        Circuit(method="eap", level="neuron", parity=("edge-counts", "folded-weights")),
        Circuit(
            method="eap", ablation="optimal", parity=True, learning=Learning(steps=2, sources=11)
        ),
    ],
    ids=lambda s: f"{s.method}-{s.level}-{s.ablation}",
)
def test_a_study_may_ask_for_them(anatomies, pairs, drain, settings):
    rows = Prepared(kept=tuple(pairs), dropped=())
    asked = replace(settings, held_out=0, sizes=(0.3, 1.0), margin=0)
    report = drain(study(anatomies["gpt2"].hosted, rows, asked))
    found = report.found
    assert report.as_dict()["parity"] == sorted(asked.quirks) != []
    plain = drain(study(anatomies["gpt2"].hosted, rows, replace(asked, parity=False))).found
    assert found.m_full == plain.m_full
    if settings.level != "edge":
        graph = anatomies["gpt2"].graph
        assert found.curve[-1].n_edges == graph.sources * graph.destinations
        assert plain.curve[-1].n_edges == graph.edges
