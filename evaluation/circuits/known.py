"""How well scores find a circuit that is known beforehand: the area under the ROC curve.

As MIB's InterpBench part has it: ten greedy circuits by absolute score, sizes rounded up; the true
positive rate over the false positive rate, which is divided by its last value; no point at (0, 0).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from evaluation.circuits.attribution import Scores
from evaluation.circuits.faithfulness import SIZES
from evaluation.circuits.graph import Graph
from evaluation.circuits.selection import select


def auroc(
    graph: Graph,
    scores: Scores,
    planted: Bool[Tensor, "sources destinations"],
    sizes: Sequence[float] = SIZES,
) -> float:
    """The area: 1 where the planted edges come first, about half where the order is chance.

    Args:
        graph: Of the model.
        scores: Of its edges.
        planted: The edges of the known circuit.
        sizes: Shares of the edges.
    """
    true, false = planted & graph.real, ~planted & graph.real
    hits, alarms = [], []
    for k in sizes:
        count = math.ceil(k * graph.edges)
        found = select(graph, scores, count, level="edge", absolute=True, way="greedy").edges
        hits.append(float((found & true).sum() / true.sum()))
        alarms.append(float((found & false).sum() / false.sum()))
    last = alarms[-1] if alarms[-1] > 0 else 1.0
    return float(np.trapezoid(hits, np.array(alarms) / last))


def edges_between(graph: Graph, names: Sequence[str]) -> Bool[Tensor, "sources destinations"]:
    """All edges among some nodes, by name; the logits are always one of them."""
    inside = torch.tensor([name in set(names) for name in graph.source_names] + [True])
    return graph.real & inside[:-1, None] & inside[graph.owners][None, :]
