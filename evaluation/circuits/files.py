"""MIB's submission files for the circuit track: written, and read by our own loader.

One folder per cell, `task_model`, with hyphens inside the task; in it one score file, or nine
membership files (the evaluator never grows circuits greedily, so greedy ones must come as
memberships). `.pt` is tensors in the order of the graph; `.json` names every edge. In JSON the
evaluator reads a head's neurons per layer, as [heads][d] under every head: so they are written.
NaN means "not scored, always kept".
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from evaluation.circuits.attribution import Scores
from evaluation.circuits.errors import UnreadableCircuit
from evaluation.circuits.graph import Graph
from evaluation.circuits.parity import Quirk
from evaluation.circuits.selection import Subgraph, full, select

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""The sizes of the nine membership files."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Submission:
    """What one file holds."""

    graph: Graph
    scores: Scores
    circuit: Subgraph
    nodes: Bool[Tensor, " sources"]


def cell(task: str, model: str) -> str:
    """The name of a cell's folder: results are split at underscores, so a task has hyphens."""
    return f"{task.replace('_', '-')}_{model}"


def write_pt(file: Path, graph: Graph, scores: Scores, circuit: Subgraph | None = None) -> Path:
    """Write tensors in the graph's order; without a circuit, everything is in it."""
    circuit = circuit or full(graph)
    told: dict[str, Any] = {
        "cfg": _cfg(graph),
        "src_nodes": list(graph.source_names),
        "dst_nodes": list(graph.destination_names),
        "edges_scores": scores.edges.float(),
        "edges_in_graph": circuit.edges.clone(),
        "nodes_in_graph": circuit.sources,
    }
    if scores.nodes is not None:
        told["nodes_scores"] = scores.nodes.float()
    if scores.neurons is not None:
        everything = torch.ones(scores.neurons.shape, dtype=torch.bool)
        told["neurons_in_graph"] = everything if circuit.neurons is None else circuit.neurons
        told["neurons_scores"] = scores.neurons.float()
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(told, file)
    return file


def write_json(file: Path, graph: Graph, scores: Scores, circuit: Subgraph | None = None) -> Path:
    """Write every edge by name; large graphs belong into `.pt`."""
    circuit = circuit or full(graph)
    kept = circuit.sources.tolist()
    nodes: dict[str, dict[str, Any]] = {
        name: {"in_graph": kept[u]} for u, name in enumerate(graph.source_names)
    }
    for u, name in enumerate(graph.source_names):
        if scores.nodes is not None:
            nodes[name]["score"] = float(scores.nodes[u])
        if scores.neurons is not None:
            every = torch.ones(graph.sources, graph.width, dtype=torch.bool)
            mask = every if circuit.neurons is None else circuit.neurons
            rows = _shared_rows(graph, u)
            nodes[name]["neurons"] = mask[rows].tolist()
            nodes[name]["neurons_scores"] = scores.neurons[rows].tolist()
    nodes["logits"] = {"in_graph": True}
    edges = {
        name: {"score": float(scores.edges[u, v]), "in_graph": bool(circuit.edges[u, v])}
        for name, u, v in graph.named_edges()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    told = {"cfg": _cfg(graph), "nodes": nodes, "edges": edges}
    file.write_text(json.dumps(told), encoding="utf-8")
    return file


def write_nine(
    folder: Path, graph: Graph, scores: Scores, circuits: Mapping[float, Subgraph]
) -> list[Path]:
    """Write nine membership files, one per share; they are integrated by position.

    Raises:
        UnreadableCircuit: Other than the nine sizes: the evaluator would shift the axis silently.
    """
    if tuple(sorted(circuits)) != SHARES:
        raise UnreadableCircuit(str(folder), f"there must be circuits of the shares {SHARES}")
    return [
        write_pt(folder / f"{i}_{share:g}.pt", graph, scores, circuits[share])
        for i, share in enumerate(SHARES)
    ]


def write_grown(
    folder: Path, graph: Graph, scores: Scores, parity: Collection[Quirk] = ()
) -> list[Path]:
    """Write the nine sizes of circuits that are grown from the logits.

    By signed and by absolute score, in the folders by which the evaluator tells them apart; one
    folder where no score is negative, since both are the same there. `parity` may `prune` as the
    reference does.
    """
    ways = {"abs-false": False, "abs-true": True} if bool((scores.edges < 0).any()) else {"": True}
    written: list[Path] = []
    choose = partial(select, graph, scores, level="edge", way="greedy", parity=parity)
    for name, absolute in ways.items():
        circuits = {k: choose(int(k * graph.edges), absolute=absolute) for k in SHARES}
        written += write_nine(folder / name, graph, scores, circuits)
    return written


def read(file: Path) -> Submission:
    """The scores and the circuit of a file of either layout.

    Raises:
        UnreadableCircuit: It is neither, or its parts do not fit each other.
    """
    try:
        if file.suffix == ".json":
            return _from_json(json.loads(file.read_text(encoding="utf-8")))
        return _from_pt(torch.load(file, weights_only=True, map_location="cpu"))
    except UnreadableCircuit:
        raise
    except Exception as broken:
        problem = f"{type(broken).__name__}: {broken}"
        raise UnreadableCircuit(file.name, problem[:200]) from broken


def read_folder(folder: Path) -> list[Submission]:
    """The one score file of a cell, or its nine membership files by size."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".pt", ".json"))
    if len(files) not in (1, len(SHARES)):
        raise UnreadableCircuit(folder.name, f"there are {len(files)} files, not 1 or 9")
    found = [read(file) for file in files]
    return sorted(found, key=lambda s: s.circuit.size(s.graph))


def _from_pt(told: Mapping[str, Any]) -> Submission:
    graph = _graph(told["cfg"])
    if tuple(told["src_nodes"]) != graph.source_names:
        raise UnreadableCircuit("src_nodes", "they are not the graph's sources in their order")
    if tuple(told["dst_nodes"]) != graph.destination_names:
        raise UnreadableCircuit("dst_nodes", "they are not the graph's destinations in their order")
    shape = graph.real.shape
    for name in ("edges_scores", "edges_in_graph"):
        if told[name].shape != shape:
            raise UnreadableCircuit(name, f"its shape is not {tuple(shape)}")

    def double(name: str) -> Tensor | None:
        return told[name].double() if name in told else None

    neurons = told.get("neurons_in_graph")
    return Submission(
        graph=graph,
        scores=Scores(
            edges=told["edges_scores"].double(),
            nodes=double("nodes_scores"),
            neurons=double("neurons_scores"),
        ),
        circuit=Subgraph(told["edges_in_graph"].bool(), neurons),
        nodes=told["nodes_in_graph"].bool(),
    )


def _from_json(told: Mapping[str, Any]) -> Submission:
    graph = _graph(told["cfg"])
    scores = torch.zeros(graph.real.shape, dtype=torch.float64)
    inside = torch.zeros(graph.real.shape, dtype=torch.bool)
    for name, edge in told["edges"].items():
        place = graph.edge(name)
        scores[place], inside[place] = edge["score"], edge["in_graph"]
    every = [told["nodes"][name] for name in graph.source_names]
    known = Scores(
        edges=scores,
        nodes=_column(every, "score"),
        neurons=_neurons(graph, every, "neurons_scores"),
    )
    neurons = _neurons(graph, every, "neurons")
    return Submission(
        graph=graph,
        scores=known,
        circuit=Subgraph(inside, None if neurons is None else neurons.bool()),
        nodes=torch.tensor([node["in_graph"] for node in every]),
    )


def _column(nodes: Sequence[Mapping[str, Any]], key: str) -> Tensor | None:
    if not any(key in node for node in nodes):
        return None
    return torch.tensor([node.get(key, math.nan) for node in nodes], dtype=torch.float64)


def _neurons(graph: Graph, nodes: Sequence[Mapping[str, Any]], key: str) -> Tensor | None:
    if not all(key in node for node in nodes):
        return None
    rows = []
    for u, node in enumerate(nodes):
        layer = graph.layer_of(u)
        is_head = u != 0 and u != graph.mlp(layer)
        rows.append(node[key][u - graph.before(layer)] if is_head else node[key])
    return torch.tensor(rows, dtype=torch.float64)


def _shared_rows(graph: Graph, source: int) -> Any:
    """What stands under a node: its own numbers, or those of all heads of the layer."""
    layer = graph.layer_of(source)
    if source == 0 or source == graph.mlp(layer):
        return source
    return slice(graph.before(layer), graph.mlp(layer))


def _cfg(graph: Graph) -> dict[str, Any]:
    return {
        "n_layers": graph.layers,
        "n_heads": graph.heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": graph.width,
    }


def _graph(cfg: Mapping[str, Any]) -> Graph:
    return Graph(
        layers=int(cfg["n_layers"]),
        heads=int(cfg["n_heads"]),
        width=int(cfg["d_model"]),
        parallel=bool(cfg["parallel_attn_mlp"]),
    )
