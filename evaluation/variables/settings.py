"""What a study of a causal variable is asked for."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen

from evaluation.variables.objective import Coefficients
from evaluation.variables.training import Recipe
from evaluation.variables.trials import BUDGET
from evaluation.variables.units import Unit

Kind = Literal["full", "das", "dbm", "pca", "svd", "dbm_pca", "dbm_svd", "sae", "dbm_sae"]
Control = Literal["full", "random_features", "no_op"]
Metric = Literal["iia", "logit_difference"]
Benchmark = Literal["4_answer_MCQA", "ARC_easy", "arithmetic", "ravel_task", "ioi_task"]
"""MIB's tasks, as its submissions call them."""
LEARNED: frozenset[Kind] = frozenset({"das", "dbm", "dbm_pca", "dbm_svd", "dbm_sae"})
FITTED: frozenset[Kind] = frozenset({*LEARNED, "pca", "svd"})
"""Kinds that look at rows before they are scored, on other rows."""
OF_SAE: frozenset[Kind] = frozenset({"sae", "dbm_sae"})


@dataclass(frozen=True, kw_only=True)
class Featurizing:
    """Which features of a unit are swapped.

    Attributes:
        kind: `full` the whole unit; `das` n learned directions; `dbm` coordinates under a learned
            mask; `pca` and `svd` the n leading directions, `dbm_pca` and `dbm_svd` a mask over
            them; `sae` named features, or all; `dbm_sae` a mask over an SAE's features.
        n: Directions; None is min(16, half of the unit) for `das`, else all there are.
        saes: Ids of SAEs, each for the layer of its own site.
        features: Of the SAE, for `sae`; empty is all.
    """

    kind: Kind = "das"
    n: Annotated[int, Ge(1), Le(65536)] | None = None
    saes: Annotated[tuple[str, ...], MaxLen(1000)] = ()
    features: Annotated[tuple[Annotated[int, Ge(0)], ...], MaxLen(10000)] = ()


@dataclass(frozen=True, kw_only=True)
class VariableStudy:
    """Where does a variable sit?

    Attributes:
        variable: As the rows name it.
        units: What is swapped, one by one; `sweep` is the stream at all layers and positions.
        jointly: Whether all units are swapped together, as one place (the indirect object's heads).
        layers, positions: What a sweep is confined to; empty is all.
        metric: `iia`, or the squared error of the logit difference (lower is better).
        checker: How an answer is compared, see `objective.CHECKERS`.
        new_tokens: That are written, and how many tokens of the answer are trained.
        coefficients: Of the logit difference; None fits them to full swaps of the training rows.
        controls: What is measured beside it.
        held_out: Share of each set that is scored; the rest trains. Kinds that fit nothing are
            scored on all rows, and so is everything if the caller brings rows of both kinds.
        seed: Of the split, of every start, of the batches' order and of random features.
        budget: Bytes of clean activations that are kept.
        benchmark: The task of MIB whose own recipe, number of directions and way of scoring fill in
            what is left as it is here (`evaluation.variables.benchmark`).
    """

    variable: Annotated[str, MaxLen(200)]
    units: Annotated[tuple[Unit, ...], MaxLen(4096)] | Literal["sweep"] = "sweep"
    jointly: bool = False
    layers: tuple[int, ...] = ()
    positions: tuple[str, ...] = ()
    featurizer: Featurizing = field(default_factory=Featurizing)
    metric: Metric = "iia"
    checker: Literal["contains", "contains_word", "same_number"] = "contains"
    new_tokens: Annotated[int, Ge(1), Le(8)] = 1
    coefficients: Coefficients | None = None
    recipe: Recipe = field(default_factory=Recipe)
    controls: tuple[Control, ...] = ("full", "random_features", "no_op")
    held_out: Annotated[float, Gt(0), Lt(1)] = 0.5
    seed: int = 0
    budget: Annotated[int, Ge(0)] = BUDGET
    benchmark: Benchmark | None = None
