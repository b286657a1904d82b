"""The reference's own ways of scoring and counting, each by its name.

They are off unless a comparison with numbers that rest on them asks for them: then by name, or all
that change anything in the evaluation at hand. What the reference does differently from one process
to the next (ties in the order of string hashes, 0/0) has no result that could be given again.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.errors import BadCircuit

Quirk = Literal[
    "batch-weights",
    "mlp-nodes",
    "node-integrals",
    "held-embedding",
    "folded-weights",
    "optimal-start",
    "prune",
    "edge-counts",
]
"""By name:

- `batch-weights`: the mean within each batch, divided by all pairs: a short one counts too much.
- `mlp-nodes`: an MLP's node and neuron scores come from the gradient at its own input.
- `node-integrals`: nodes and neurons of `eap-ig-inputs` by right sums, edges by left ones.
- `held-embedding`: where a rotary model's embedding is held, no gradient reaches layer 0's q, k, v.
- `folded-weights`: sources write as behind folded norms and value biases and centred weights.
- `optimal-start`: vectors are learned from a sum over a step's prompts and tokens, not from a mean.
- `prune`: pruning stops as soon as a round drops no node, though it dropped edges.
- `edge-counts`: a kept node counts an edge to every kept destination, real or not.
"""
GRADUAL = ("eap", "clean-corrupted", "eap-ig-inputs", "eap-ig-activations")
"""Methods that take gradients."""
_CHANGES: Mapping[Quirk, str] = {
    "batch-weights": f"scores of {', '.join(GRADUAL)}",
    "mlp-nodes": f"nodes and neurons of {', '.join(GRADUAL)}",
    "node-integrals": "nodes and neurons of eap-ig-inputs",
    "held-embedding": "edges of eap-ig-activations",
    "folded-weights": "information-flow-routes, neurons, and ablation zero or mean-reference",
    "optimal-start": "ablation optimal",
    "prune": "circuits of edges",
    "edge-counts": "counts of circuits of nodes or neurons",
}


def quirks(
    asked: bool | Sequence[Quirk],
    method: str,
    level: str,
    ablation: str,
) -> frozenset[Quirk]:
    """What counts: of all, those that change anything here; of some, these.

    Raises:
        BadCircuit: One was named that changes nothing here.
    """
    here: set[Quirk] = {quirk for quirk in _CHANGES if _changes(quirk, method, level, ablation)}
    if isinstance(asked, bool):
        return frozenset(here if asked else ())
    for quirk in asked:
        if quirk not in here:
            raise BadCircuit(
                f"{quirk} changes {_CHANGES[quirk]}, and nothing here.",
                f"Leave it out; parity knows {', '.join(sorted(here)) or 'nothing'} here.",
                "parity",
            )
    return frozenset(asked)


def idle(anatomy: Anatomy) -> dict[Quirk, str]:
    """What changes nothing in this model, and why."""
    reasons: dict[Quirk, str] = {}
    if anatomy.decoder.places is not None:
        reasons["held-embedding"] = "its positions are learned, and carry the gradient"
    if not anatomy.centred and anatomy.value_biases(0) is None:
        reasons["folded-weights"] = "it has neither LayerNorms nor biases of values"
    return reasons


def check_model(asked: bool | Sequence[Quirk], anatomy: Anatomy) -> None:
    """Refuse what was named and changes nothing in this model.

    Raises:
        BadCircuit: Learned positions where an embedding is held; no norm to centre, nor a bias.
    """
    reasons = idle(anatomy)
    for quirk in () if isinstance(asked, bool) else asked:
        if quirk in reasons:
            raise BadCircuit(
                f"{quirk} changes nothing in {anatomy.hosted.name}: {reasons[quirk]}.",
                "Leave it out.",
                "parity",
            )


def _changes(quirk: Quirk, method: str, level: str, ablation: str) -> bool:
    gradual, edges = method in GRADUAL, level == "edge"
    changing: Mapping[Quirk, bool] = {
        "batch-weights": gradual,
        "mlp-nodes": gradual and not edges,
        "node-integrals": method == "eap-ig-inputs" and not edges,
        "held-embedding": method == "eap-ig-activations" and edges,
        "folded-weights": method == "information-flow-routes"
        or ablation in ("zero", "mean-reference")
        or (gradual and level == "neuron"),
        "optimal-start": ablation == "optimal",
        "prune": edges,
        "edge-counts": not edges,
    }
    return changing[quirk]
