"""The circuit evaluation: find what carries a behaviour on some pairs, judge it on others.

One part of the pairs scores edges, nodes or neurons; the rest judges the circuits of all sizes.
CPR is never told without CMD and the faithfulness at each size.
"""

import json
import resource
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
import transformers
from annotated_types import Ge, Gt, Le, Lt

from evaluation.behaviours.pairs import Dropped, PairIds, Prepared
from evaluation.circuits.anatomy import Anatomy, find_anatomy
from evaluation.circuits.attribution import Gradually, Scores, attribute, random_scores
from evaluation.circuits.batches import Batch, in_batches, reference_weights
from evaluation.circuits.drawing import top_nodes
from evaluation.circuits.errors import BadCircuit, TooFewPairs
from evaluation.circuits.exact import patch_exactly, patch_nodes_exactly
from evaluation.circuits.faithfulness import SIZES, Faithfulness, floors, measure
from evaluation.circuits.flow_routes import flow_routes
from evaluation.circuits.graph import Graph
from evaluation.circuits.optimal import Learning, optimal_vectors
from evaluation.circuits.parity import Quirk, check_model, idle, quirks
from evaluation.circuits.points import Cost
from evaluation.circuits.replacements import PATCHING, Ablation, Replacement, replacement
from evaluation.circuits.running import know
from evaluation.circuits.sampled_masks import Sampling, sampled_masks
from evaluation.circuits.selection import Level, Way
from models import tensor_file
from models.hosted import HostedModel
from models.progress import Progress

Method = Literal[
    "eap",
    "eap-ig-inputs",
    "eap-ig-activations",
    "clean-corrupted",
    "exact",
    "information-flow-routes",
    "ugs",
    "random",
]
Steps = Generator[Progress, None, Scores]
FORMAT = 1
_BY_EDGE_ALONE = ("information-flow-routes", "ugs")
_WITH_OTHER_ABLATIONS = ("eap", "exact")


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """What is asked: a method, a level, and which circuits are judged."""

    method: Method = "eap-ig-inputs"
    """How scores are made; `eap` with `level="node"` is NAP, with an integral NAP-IG."""
    level: Level = "edge"
    """What circuits are made of."""
    ablation: Ablation = "patching"
    """What replaces an output while scores are made (`eap` and `exact`); circuits are always judged
    with the corrupted run."""
    steps: Annotated[int, Ge(1), Le(100)] = 5
    """Of an integral."""
    sizes: tuple[Annotated[float, Gt(0), Le(1)], ...] = SIZES
    """Shares of the items that circuits have; areas are over these."""
    greedy: bool | None = None
    """Whether circuits grow from the logits; left out, only those of flow routes do."""
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.5
    """Share of the pairs that judge; 0 lets all pairs find and judge."""
    most_pairs: Annotated[int, Ge(1)] = 1000
    """That make scores, at most."""
    exact_postnorm: bool = False
    """Gemma 2: carry a head's difference through the norm behind it."""
    parity: bool | tuple[Quirk, ...] = False
    """The reference's own ways of scoring and counting: all that change anything here, or some by
    name (`evaluation.circuits.parity`)."""
    batch: Annotated[int, Ge(1)] = 20
    """Pairs of a batch, as `batch-weights` weights them."""
    margin: Annotated[float, Ge(0)] = 0.1
    """The least m(full) - m(empty), in logits, that shares are told of."""
    tokens: Annotated[int, Ge(1)] = 512
    """Of one forward."""
    sampling: Sampling = field(default_factory=Sampling)
    """How `ugs` learns."""
    learning: Learning = field(default_factory=Learning)
    """How `optimal` vectors are learned."""
    seed: int = 0
    """Of the split, of random scores and of intervals."""
    kind: Literal["circuit"] = "circuit"

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            BadCircuit: A method without scores of that level, or without that ablation; parity in
                what changes nothing here.
        """
        if self.method in _BY_EDGE_ALONE and self.level != "edge":
            raise BadCircuit(
                f"{self.method} scores edges, not {self.level}s.", 'Use level "edge".', "level"
            )
        if self.method == "exact" and self.level == "neuron":
            raise BadCircuit("exact does not patch neurons.", 'Use "eap-ig-inputs".', "level")
        nodes = self.method == "exact" and self.level == "node"
        if self.ablation != "patching" and (self.method not in _WITH_OTHER_ABLATIONS or nodes):
            raise BadCircuit(
                f"{self.method} at {self.level} level replaces outputs by the corrupted run.",
                'Use ablation "patching", or method "eap".',
                "ablation",
            )
        if self.greedy and self.level != "edge":
            raise BadCircuit("Only circuits of edges grow greedily.", "Leave it out.", "greedy")
        if list(self.sizes) != sorted(set(self.sizes)) or len(self.sizes) < 2:
            raise BadCircuit("Sizes must rise, and be two or more.", "Leave them out.", "sizes")
        quirks(self.parity, self.method, self.level, self.ablation)

    @property
    def quirks(self) -> frozenset[Quirk]:
        """The reference's ways that count here."""
        return quirks(self.parity, self.method, self.level, self.ablation)

    @property
    def way(self) -> Way:
        """How circuits of edges are selected."""
        grown = self.method == "information-flow-routes" if self.greedy is None else self.greedy
        return "greedy" if grown else "top"


@dataclass(frozen=True, eq=False, kw_only=True)
class CircuitReport:
    """What came out.

    Attributes:
        found: The curve, its areas and the metric's ends.
        top_nodes: (name, score, share) of the strongest nodes, where nodes are scored.
        found_by, judged_by: Numbers of pairs.
        dropped: Rows that could not be used.
        cost: Prompts run forwards and backwards, seconds, and the process's peak bytes (of the
            device on a GPU).
        header: Model, fingerprint, versions.
        scores: All of them, for files and pictures.
    """

    settings: Circuit
    graph: Graph
    found: Faithfulness
    top_nodes: tuple[tuple[str, float, float], ...]
    found_by: int
    judged_by: int
    dropped: tuple[Dropped, ...]
    cost: dict[str, float]
    header: dict[str, str]
    scores: Scores

    def as_dict(self) -> dict[str, Any]:
        """For JSON: everything but the scores."""
        told = asdict(self.found)
        cpr, cmd = floors(self.settings.sizes)
        return {
            **told,
            "floor": {"cpr": cpr, "cmd": cmd},
            "top_nodes": [{"name": n, "score": s, "share": h} for n, s, h in self.top_nodes],
            "edges": self.graph.edges,
            "parity": sorted(self.settings.quirks),
            "found_by": self.found_by,
            "judged_by": self.judged_by,
            "kept": self.found_by + (self.judged_by if self.settings.held_out else 0),
            "dropped": [asdict(row) for row in self.dropped],
            "cost": self.cost,
            "settings": asdict(self.settings),
            "header": self.header,
        }

    def importances(self) -> bytes:
        """The scores as a safetensors file: `edges`, and `nodes` and `neurons` where there are."""
        named = {"edges": self.scores.edges, "nodes": self.scores.nodes}
        named["neurons"] = self.scores.neurons
        graph = asdict(self.graph)
        settings = json.loads(json.dumps(asdict(self.settings)))
        header = {"graph": graph, "settings": settings, **self.header}
        tensors = {name: t for name, t in named.items() if t is not None}
        return tensor_file.pack(tensors, header, FORMAT)


def read_importances(data: bytes, most_bytes: int = 2**30) -> tuple[Graph, Scores, dict[str, Any]]:
    """The graph, the scores and the header of an importances file.

    Raises:
        ValueError: It is no such file.
    """
    header, tensors = tensor_file.unpack(data, FORMAT, most_bytes, 2**20)
    found = {name: t.double() for name, t in tensors.items()}
    return Graph(**header["graph"]), Scores(**found), header


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored(Progress):
    """The step at which all scores are there."""

    scores: Scores


def study(
    hosted: HostedModel,
    pairs: Prepared,
    settings: Circuit | None = None,
    scores: Scores | None = None,
) -> Generator[Progress, None, CircuitReport]:
    """Score, select and judge circuits.

    Args:
        hosted: The evaluation's own model: hooks stand in it while this runs.
        pairs: Pairs of prompts in its tokens.
        settings: What is asked.
        scores: What an equal study told in `Scored` before it was broken off.

    Raises:
        BadCircuit: Settings that contradict each other.
        NoGraph: A model that cannot be taken apart.
        TooFewPairs: Fewer than two pairs to find or to judge.
    """
    settings = settings or Circuit()
    settings.check()
    started, cost, anatomy = time.monotonic(), Cost(), find_anatomy(hosted)
    check_model(settings.parity, anatomy)
    if settings.parity:
        real = sorted(settings.quirks - idle(anatomy).keys())
        settings = replace(settings, parity=tuple(real))
    finding, judging = split(pairs.kept, settings)
    _forget_peak(hosted)
    if scores is None:
        scores = yield from _scores(anatomy, finding, settings, cost)
        yield Scored(stage="attribution", done=1, total=1, scores=scores)
    batches = in_batches(judging, settings.tokens, hosted.device)
    found = yield from measure(
        anatomy,
        (know(anatomy, batch, cost) for batch in batches),
        scores,
        pairs=len(judging),
        level=settings.level,
        way=settings.way,
        sizes=settings.sizes,
        margin=settings.margin,
        seed=settings.seed,
        cost=cost,
        parity=settings.quirks,
    )
    return CircuitReport(
        settings=settings,
        graph=anatomy.graph,
        found=found,
        top_nodes=tuple(top_nodes(anatomy.graph, scores)),
        found_by=len(finding),
        judged_by=len(judging),
        dropped=pairs.dropped,
        cost=_costs(hosted, cost, time.monotonic() - started),
        header=_header(hosted),
        scores=scores,
    )


def split(
    kept: Sequence[PairIds], settings: Circuit
) -> tuple[tuple[PairIds, ...], tuple[PairIds, ...]]:
    """The pairs that find and the pairs that judge; drawn by the seed, the same every time."""
    order = torch.randperm(
        len(kept), generator=torch.Generator().manual_seed(settings.seed)
    ).tolist()
    judging = round(settings.held_out * len(kept))
    finders = sorted(order[judging:])[: settings.most_pairs]
    judges = sorted(order[:judging]) if judging else list(range(len(kept)))
    if min(len(finders), len(judges)) < 2:
        raise TooFewPairs(len(kept), 4 if settings.held_out else 2)
    return tuple(kept[i] for i in finders), tuple(kept[i] for i in judges)


def _scores(anatomy: Anatomy, pairs: Sequence[PairIds], settings: Circuit, cost: Cost) -> Steps:
    parity = settings.quirks
    weights = reference_weights(len(pairs), settings.batch) if "batch-weights" in parity else None
    batches = list(in_batches(pairs, settings.tokens, anatomy.device, weights))
    if settings.method == "random":
        return random_scores(anatomy, settings.seed)
    if settings.method == "information-flow-routes":
        folded = "folded-weights" in parity
        return (yield from flow_routes(anatomy, batches, cost, behind_folded=folded))
    if settings.method == "ugs":
        return (yield from sampled_masks(anatomy, batches, settings.sampling, cost))
    if settings.method == "exact" and settings.level == "node":
        known = (know(anatomy, batch, cost) for batch in batches)
        return (yield from patch_nodes_exactly(anatomy, known, cost))
    other = yield from _replacement(anatomy, batches, settings, cost)
    if settings.method == "exact":
        return (yield from patch_exactly(anatomy, batches, other, cost))
    how = Gradually(
        method=settings.method,
        steps=settings.steps,
        neurons=settings.level == "neuron",
        exact_postnorm=settings.exact_postnorm,
        parity=parity,
    )
    return (yield from attribute(anatomy, batches, how, other, cost))


def _replacement(
    anatomy: Anatomy, batches: Sequence[Batch], settings: Circuit, cost: Cost
) -> Generator[Progress, None, Replacement]:
    if settings.ablation == "patching":
        return PATCHING
    vectors = None
    parity = settings.quirks
    if settings.ablation == "optimal":
        from_sums = "optimal-start" in parity
        learning = settings.learning
        vectors = yield from optimal_vectors(anatomy, batches, learning, cost, from_sums=from_sums)
    folded = "folded-weights" in parity
    return replacement(anatomy, settings.ablation, batches, cost, vectors, behind_folded=folded)


def _forget_peak(hosted: HostedModel) -> None:
    if hosted.device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(hosted.device)


def _costs(hosted: HostedModel, cost: Cost, seconds: float) -> dict[str, float]:
    if hosted.device.type != "cpu":
        peak = torch.cuda.max_memory_allocated(hosted.device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**asdict(cost), "seconds": round(seconds, 3), "peak_bytes": peak}


def _header(hosted: HostedModel) -> dict[str, str]:
    return {
        "model": hosted.name,
        "fingerprint": hosted.fingerprint,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
