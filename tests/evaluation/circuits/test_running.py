"""A circuit's run is the switch function: off inside the circuit, on outside."""

import pytest
import torch

from evaluation.circuits import running
from evaluation.circuits.attribution import Scores
from evaluation.circuits.points import Cost
from evaluation.circuits.running import know, margins
from evaluation.circuits.selection import Subgraph, full, items, prune, select


@pytest.fixture(scope="module")
def known(anatomies, batches):
    return {
        kind: [know(anatomy, batch, Cost()) for batch in batches]
        for kind, anatomy in anatomies.items()
    }


def together(anatomy, known, circuit, cost=None):
    found = torch.zeros(5, dtype=torch.float64)
    for some in known:
        found[list(some.batch.rows)] = margins(anatomy, some, circuit, cost or Cost())
    return found


def drawn(graph, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    nodes = normal(graph.sources)
    nodes[0] = 9.0  # without the input nothing is fed, and every circuit is empty
    return Scores(
        edges=normal(graph.sources, graph.destinations) * graph.real,
        nodes=nodes,
        neurons=normal(graph.sources, graph.width),
    )


def slowly(slow, batches, edges):
    found = torch.zeros(5, dtype=torch.float64)
    for batch in batches:
        found[list(batch.rows)] = slow.margins(batch, (~edges).double())
    return found


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("way", ["top", "greedy"])
def test_every_size_equals_the_slow_way(  # noqa: PLR0913, PLR0917 - fixtures
    anatomy, known, batches, slow, close, share, way
):
    graph, kind = anatomy.graph, anatomy.family.kind
    count = int(share * graph.edges)
    circuit = select(graph, drawn(graph), count, level="edge", absolute=True, way=way)
    found = together(anatomy, known[kind], circuit)
    close(kind, found, slowly(slow(anatomy), batches, circuit.edges))


def test_what_pruning_removes_does_not_matter(anatomy, known, batches, slow, close):
    graph, kind = anatomy.graph, anatomy.family.kind
    unpruned = graph.real & (drawn(graph).edges > 0.7)
    pruned = prune(graph, unpruned)
    assert pruned.sum() < unpruned.sum()
    found = together(anatomy, known[kind], Subgraph(pruned))
    close(kind, found, slowly(slow(anatomy), batches, unpruned))


def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(anatomy, known, batches, close):
    graph, kind, model = anatomy.graph, anatomy.family.kind, anatomy.hosted.modules["lm"]
    everything, nothing = full(graph), Subgraph(torch.zeros_like(graph.real))
    cost = Cost()
    ends = [together(anatomy, known[kind], c, cost) for c in (everything, nothing)]
    assert cost.forwards == 0
    for batch in batches:
        for ids, found in zip((batch.clean, batch.corrupted), ends, strict=True):
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            close(kind, found[list(batch.rows)], batch.margins(logits.double()))
    # And through the runs of a circuit, not only by the shortcut.
    long = torch.cat([running._margins(anatomy, k, everything, graph.sources) for k in known[kind]])
    short = torch.cat([ends[0][list(k.batch.rows)] for k in known[kind]])
    close(kind, long, short)


@pytest.mark.parametrize("level", ["node", "neuron"])
def test_a_node_circuit_is_a_forward_with_replaced_outputs(
    anatomy, known, batches, slow, close, level
):
    graph, kind, plainly = anatomy.graph, anatomy.family.kind, slow(anatomy)
    scores = drawn(graph)
    count = int(0.6 * items(graph, scores, level))
    circuit = select(graph, scores, count, level=level, absolute=False)
    keeps = (
        circuit.neurons if level == "neuron" else circuit.sources[:, None].expand(-1, graph.width)
    ).double()
    expected = torch.zeros(5, dtype=torch.float64)
    for batch in batches:
        corrupted = plainly.run(batch.corrupted)[0]
        held = {}
        for u in range(graph.sources):
            now = plainly.run(batch.clean, held=held)[0][u]
            held[u] = keeps[u] * now + (1 - keeps[u]) * corrupted[u]
        expected[list(batch.rows)] = batch.margins(plainly.run(batch.clean, held=held)[1])
    found = together(anatomy, known[kind], circuit)
    assert 0 < circuit.size(graph) < graph.edges
    close(kind, found, expected)


def test_rows_in_small_parts_are_rows_together(anatomies, known, monkeypatch, close):
    anatomy = anatomies["llama"]
    circuit = select(anatomy.graph, drawn(anatomy.graph), 60, level="edge", absolute=True)
    whole = together(anatomy, known["llama"], circuit)
    monkeypatch.setattr(running, "ROOM_BYTES", 1)
    close("llama", together(anatomy, known["llama"], circuit), whole)
