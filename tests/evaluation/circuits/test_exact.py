"""Exact patching, one switch at a time."""

import pytest
import torch

from evaluation.circuits import exact
from evaluation.circuits.exact import patch_exactly, patch_nodes_exactly
from evaluation.circuits.points import Cost
from evaluation.circuits.replacements import replacement
from evaluation.circuits.running import know


def brute(slow, batches, pairs=5):
    """Every edge, patched alone in the switch function."""
    graph, found = slow.graph, 0.0
    for batch in batches:
        effects = torch.zeros(graph.sources, graph.destinations, dtype=torch.float64)
        base = slow.margins(batch, torch.zeros_like(effects)).sum()
        for u, v in graph.real.nonzero().tolist():
            switches = torch.zeros_like(effects)
            switches[u, v] = 1
            effects[u, v] = (base - slow.margins(batch, switches).sum()) / pairs
        found = found + effects
    return found


def test_every_edge_patched_one_at_a_time(anatomy, batches, slow, close, drain):
    longer = batches[1:]
    found = drain(patch_exactly(anatomy, longer)).edges
    close(anatomy.family.kind, found, brute(slow(anatomy), longer))


def test_parts_of_any_size_give_the_same(anatomies, batches, close, drain, monkeypatch):
    anatomy = anatomies["llama"]
    together = drain(patch_exactly(anatomy, batches[:1])).edges
    monkeypatch.setattr(exact, "TOKENS", 40)
    close("llama", drain(patch_exactly(anatomy, batches[:1])).edges, together)


def test_other_replacements_can_be_patched(anatomies, batches, slow, drain):
    anatomy, plainly = anatomies["gpt2"], slow(anatomies["gpt2"])
    found = drain(patch_exactly(anatomy, batches, replacement(anatomy, "zero", batches, Cost())))
    switches = torch.zeros(anatomy.graph.real.shape, dtype=torch.float64)
    switches[0, -1] = 1
    expected = 0.0
    for batch in batches:
        ends = [
            batch.margins(plainly.run(batch.clean, m, [torch.zeros(())] * 11)[1]).sum() / 5
            for m in (torch.zeros_like(switches), switches)
        ]
        expected += ends[0] - ends[1]
    assert float(found.edges[0, -1]) == pytest.approx(float(expected), rel=1e-9)


def test_a_node_goes_with_all_its_edges(anatomies, batches, slow, close, drain):
    anatomy, plainly = anatomies["qwen2"], slow(anatomies["qwen2"])
    known = [know(anatomy, batch, Cost()) for batch in batches]
    found = drain(patch_nodes_exactly(anatomy, known)).nodes
    expected = torch.zeros_like(found)
    for u in range(anatomy.graph.sources):
        switches = torch.zeros(anatomy.graph.real.shape, dtype=torch.float64)
        for batch in batches:
            base = plainly.margins(batch, switches).sum()
            without = switches.clone()
            without[u] = 1
            expected[u] += (base - plainly.margins(batch, without).sum()) / 5
    close("qwen2", found, expected)
