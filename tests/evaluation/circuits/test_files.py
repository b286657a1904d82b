"""Both submission layouts come back as they went out, in the shapes that the evaluator reads."""

import json
import math

import pytest
import torch

from evaluation.circuits.attribution import Scores
from evaluation.circuits.errors import UnknownEdge, UnreadableCircuit
from evaluation.circuits.files import (
    SHARES,
    cell,
    read,
    read_folder,
    write_grown,
    write_json,
    write_nine,
    write_pt,
)
from evaluation.circuits.graph import Graph
from evaluation.circuits.selection import full, items, select

GRAPH = Graph(layers=2, heads=3, width=4)


@pytest.fixture(scope="module")
def scores():
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw).double()

    nodes = normal(GRAPH.sources)
    nodes[2] = math.nan
    return Scores(
        edges=normal(GRAPH.sources, GRAPH.destinations) * GRAPH.real,
        nodes=nodes,
        neurons=normal(GRAPH.sources, GRAPH.width),
    )


@pytest.mark.parametrize("write", [write_pt, write_json])
def test_what_is_written_is_read(tmp_path, scores, write):
    circuit = select(GRAPH, scores, 30, level="edge", absolute=True)
    ending = "pt" if write is write_pt else "json"
    found = read(write(tmp_path / "ioi_gpt2" / f"scores.{ending}", GRAPH, scores, circuit))
    assert found.graph == GRAPH
    torch.testing.assert_close(found.scores.edges, scores.edges.float().double())
    torch.testing.assert_close(found.scores.nodes, scores.nodes.float().double(), equal_nan=True)
    torch.testing.assert_close(found.scores.neurons, scores.neurons.float().double())
    assert torch.equal(found.circuit.edges, circuit.edges)
    assert torch.equal(found.nodes, circuit.sources)
    # The same circuits come out of scores that went through a file.
    for level in ("edge", "node", "neuron"):
        count = items(GRAPH, scores, level) // 3
        ours, theirs = (
            select(GRAPH, s, count, level=level, absolute=False) for s in (scores, found.scores)
        )
        assert torch.equal(ours.edges, theirs.edges)


def test_tensors_are_what_the_evaluator_requires(tmp_path, scores):
    told = torch.load(write_pt(tmp_path / "a.pt", GRAPH, scores), weights_only=True)
    n, m = GRAPH.sources, GRAPH.destinations
    assert told["cfg"] == {"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": False, "d_model": 4}
    assert told["src_nodes"][:2] == ["input", "a0.h0"] and told["dst_nodes"][-1] == "logits"
    shapes = {k: tuple(v.shape) for k, v in told.items() if isinstance(v, torch.Tensor)}
    assert shapes == {
        "edges_scores": (n, m),
        "edges_in_graph": (n, m),
        "nodes_in_graph": (n,),
        "nodes_scores": (n,),
        "neurons_in_graph": (n, 4),
        "neurons_scores": (n, 4),
    }
    assert told["edges_in_graph"].dtype == told["nodes_in_graph"].dtype == torch.bool


def test_neurons_in_json_stand_per_layer_under_every_head(tmp_path, scores):
    told = json.loads(write_json(tmp_path / "a.json", GRAPH, scores).read_text())
    first, second = (told["nodes"][f"a1.h{h}"]["neurons_scores"] for h in (0, 1))
    assert first == second == scores.neurons[5:8].tolist()
    assert told["nodes"]["m1"]["neurons_scores"] == scores.neurons[8].tolist()
    assert len(told["edges"]) == GRAPH.edges
    assert told["edges"]["m1->logits"].keys() == {"score", "in_graph"}
    assert all("in_graph" in node for node in told["nodes"].values())


def test_nine_files_are_nine_sizes_in_order(tmp_path, scores):
    circuits = {
        k: select(GRAPH, scores, int(k * GRAPH.edges), level="edge", absolute=True, way="greedy")
        for k in SHARES
    }
    files = write_nine(tmp_path / "ioi_gpt2", GRAPH, scores, circuits)
    assert len(files) == 9
    sizes = [found.circuit.size(GRAPH) for found in read_folder(tmp_path / "ioi_gpt2")]
    assert sizes == sorted(circuits[k].size(GRAPH) for k in SHARES)
    with pytest.raises(UnreadableCircuit):
        write_nine(tmp_path / "b", GRAPH, scores, {0.5: full(GRAPH)})
    files[0].unlink()
    with pytest.raises(UnreadableCircuit):
        read_folder(tmp_path / "ioi_gpt2")


def test_grown_circuits_go_as_memberships_once_for_each_selection(tmp_path, scores):
    files = write_grown(tmp_path / "signed", GRAPH, scores)
    assert [f.relative_to(tmp_path).as_posix() for f in files[::9]] == [
        "signed/abs-false/0_0.001.pt",
        "signed/abs-true/0_0.001.pt",
    ]
    for name, absolute in (("abs-false", False), ("abs-true", True)):
        half = select(
            GRAPH, scores, GRAPH.edges // 2, level="edge", absolute=absolute, way="greedy"
        )
        last = read_folder(tmp_path / "signed" / name)[-1]
        assert torch.equal(last.circuit.edges, half.edges)
    shares = Scores(edges=scores.edges.abs())
    assert {f.parent for f in write_grown(tmp_path / "shares", GRAPH, shares)} == {
        tmp_path / "shares"
    }


def test_tasks_have_hyphens():
    assert cell("arithmetic_addition", "llama3") == "arithmetic-addition_llama3"


def test_broken_files_are_refused(tmp_path, scores):
    told = torch.load(write_pt(tmp_path / "a.pt", GRAPH, scores), weights_only=True)
    for change in (
        {"edges_scores": told["edges_scores"][:, 1:]},
        {"src_nodes": told["src_nodes"][::-1]},
        {"dst_nodes": told["dst_nodes"][1:]},
        {"cfg": {"n_layers": 2}},
    ):
        torch.save({**told, **change}, tmp_path / "b.pt")
        with pytest.raises(UnreadableCircuit):
            read(tmp_path / "b.pt")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(UnreadableCircuit):
        read(tmp_path / "c.json")
    text = json.loads(write_json(tmp_path / "d.json", GRAPH, scores).read_text())
    text["edges"]["m0->m0"] = {"score": 1.0, "in_graph": True}
    (tmp_path / "d.json").write_text(json.dumps(text))
    with pytest.raises((UnknownEdge, UnreadableCircuit)):
        read(tmp_path / "d.json")
