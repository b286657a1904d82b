"""What can be said of an evaluation at the door: its model, its rows, the places that it names.

A job would come to the same refusal, but only after it has waited and loaded a model.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evaluation.circuits.errors import TooFewPairs
from evaluation.circuits.study import Circuit
from evaluation.variables.errors import BadStudy, NothingKept, UnknownUnit
from evaluation.variables.fitting import directions
from evaluation.variables.settings import FITTED
from evaluation.variables.units import ALL, Unit
from models.decoder import TOWER
from models.errors import MethodNotApplicable, Refusal
from models.site import Site
from service.datasets import Dataset
from service.evidence_kinds import CausalVariable
from service.questions import CheckFeatures
from service.workbench import Host
from steerers.errors import UnknownDictionary

Card = Mapping[str, Any]
_WRITES = ("circuit", "causal_variable", "feature_gate")
"""Kinds for models that continue texts."""
_OPERATIONS = {"refact": "refact", "backpatch": "back_patch", "sae": "sae"}
"""By operation of advice the method that a model must be able to."""
_SHOWN = 20
"""Values of a variable that a refusal names."""
_LEAST_PAIRS = 2
"""That find, and that judge."""


def check_model(kind: str, settings: Any, card: Card) -> None:
    """Refuse a kind, or an operation, that the model is not made for.

    Raises:
        MethodNotApplicable: Naming the model's kind and what the evaluation needs.
    """
    if kind in _WRITES and "context" not in card:
        raise MethodNotApplicable(
            kind,
            card["title"],
            f"it is a {card['modality']} model, which does not continue texts: no circuit, "
            "variable or feature is looked for in its text encoders.",
            remedy="Choose a model that continues texts. Of a text encoder, layer_advice with "
            'operation "refact" tells which layers carry a fact, and edit_audit what an edit '
            "changed.",
            param="model",
        )
    if (operation := getattr(settings, "operation", None)) is not None:
        reason = _unfit(operation, card)
        if reason is not None:
            fitting = [name for name in _OPERATIONS if _unfit(name, card) is None]
            raise MethodNotApplicable(
                f"layer_advice of {operation}",
                card["title"],
                reason,
                remedy=f"Operations for this model: {', '.join(fitting) or 'none'}.",
                param="params.operation",
            )
    layers = card["streams"].get(TOWER, 0)
    if operation == "backpatch" and settings.target + 1 >= layers:
        raise UnknownUnit(
            f"target {settings.target}", f"no layer of its {layers} is above it.", "params.target"
        )


def _unfit(operation: str, card: Card) -> str | None:
    """Why a model has nothing that the operation could be advised on; None if it has."""
    told = card["methods"].get(_OPERATIONS[operation])
    return None if told is None or told["applies"] else told["reason"]


def check_settings(settings: Any) -> None:
    """Refuse settings that contradict each other, by their path in the request."""
    if not hasattr(settings, "check"):
        return
    try:
        settings.check()
    except Refusal as refusal:
        if refusal.param is not None and not refusal.param.startswith("params."):
            refusal.param = f"params.{refusal.param}"
        raise


def check_places(settings: Any, card: Card, dataset: Dataset) -> None:
    """Refuse a variable, values, layers, heads or positions that rows or model do not have.

    Raises:
        BadStudy: No row names the variable, or expects the value; rows without what the metric is
            measured with; more directions than the stream has.
        UnknownUnit: A place, with the range that there is.
    """
    variable = getattr(settings, "variable", None)
    if variable is None:
        return
    known = sorted({name for swap in dataset.swaps for name in swap.expected})
    if variable not in known:
        raise BadStudy(
            f"No row expects anything of {variable!r}; the rows know {', '.join(known)}.",
            "params.variable",
        )
    if getattr(settings, "metric", None) == "logit_difference":
        _check_signs(variable, dataset)
    if isinstance(settings, CausalVariable):
        _check_values(settings, dataset)
        _check_directions(settings, card.get("width"))
    positions = {ALL, *(name for swap in dataset.swaps for name in swap.positions)}
    for path, layer, head, position in _places(settings):
        _check_place(path, layer, head, card)
        if position is not None and position not in positions:
            problem = f"the rows name {', '.join(sorted(positions))}."
            raise UnknownUnit(f"position {position!r}", problem, path)


def _check_values(settings: CausalVariable, dataset: Dataset) -> None:
    """Values that directions are to set are expected by some row."""
    told = (swap.expected.get(settings.variable) for swap in dataset.swaps)
    known = sorted({value for value in told if value is not None})
    asked = {f"params.toward.{i}": value for i, value in enumerate(settings.toward)}
    if settings.save is not None and settings.save.toward is not None:
        asked["params.save.toward"] = settings.save.toward
    for path, value in asked.items():
        if value not in known:
            more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
            raise BadStudy(
                f"No row expects {value!r} of {settings.variable}; the rows expect "
                f"{', '.join(map(repr, known[:_SHOWN]))}{more}.",
                path,
            )


def _check_directions(settings: CausalVariable, wide: int | None) -> None:
    """As many directions as a unit may have, and among them the one that is saved."""
    asked, save = settings.featurizer, settings.save
    if wide is None:
        return
    if asked.kind == "das" and (asked.n or 0) > wide:
        problem = f"das learns n directions of a stream of width {wide}, not {asked.n}."
        raise BadStudy(problem, "params.featurizer.n")
    most = min(wide, directions(asked, wide))
    if save is not None and save.toward is None and save.index >= most:
        problem = f"{asked.kind} has directions 0 to {most - 1} here; save.index is {save.index}."
        raise BadStudy(problem, "params.save.index")


def _check_signs(variable: str, dataset: Dataset) -> None:
    lacking = [s for s in dataset.swaps if not s.distractor or variable not in s.signs]
    if lacking:
        raise BadStudy(
            f"{len(lacking)} of {len(dataset.swaps)} rows have no distractor, or no signs of "
            f"{variable!r}, so no logit difference.",
            "params.metric",
        )


def _places(settings: Any) -> Iterator[tuple[str, int | None, int | None, str | None]]:
    """(key, layer, head, position) of everything that is named."""
    for i, layer in enumerate(getattr(settings, "layers", ())):
        yield f"params.layers.{i}", layer, None, None
    for i, position in enumerate(getattr(settings, "positions", ())):
        yield f"params.positions.{i}", None, None, position
    if (position := getattr(settings, "position", None)) is not None:
        yield "params.position", None, None, position
    for i, unit in enumerate(_units(settings)):
        yield f"params.units.{i}", unit.layer, unit.head, unit.position


def _units(settings: Any) -> Iterable[Unit]:
    units = getattr(settings, "units", ())
    return () if units == "sweep" else units


def _check_place(path: str, layer: int | None, head: int | None, card: Card) -> None:
    layers, heads = card["streams"].get(TOWER), card.get("heads")
    if layer is not None and layers is not None and not 0 <= layer < layers:
        raise UnknownUnit(f"layer {layer}", f"the model has layers 0 to {layers - 1}.", path)
    if head is not None and heads is not None and not 0 <= head < heads:
        raise UnknownUnit(f"head {head}", f"a layer has heads 0 to {heads - 1}.", path)


def check_kept(name: str, counted: Card, rows: str, model: str, most: int | None = None) -> int:
    """How many of the first rows of a data set the model can use; refused if none.

    Args:
        name: Of the data set.
        counted: Of its rows of that sort, how many are kept, and which are dropped.
        rows: The sort.
        model: Whose tokens.
        most: How many rows are read.

    Raises:
        NothingKept: With the commonest reason.
    """
    every = counted["kept"] + len(counted["dropped"])
    read = every if most is None else min(most, every)
    reasons = [row["reason"] for row in counted["dropped"] if row["row"] < read]
    if read > len(reasons):
        return read - len(reasons)
    common = max(sorted(set(reasons)), key=reasons.count) if reasons else "it has none"
    raise NothingKept(f"{model} can use 0 of {read} {rows} of {name}: {common}.")


def check_enough(settings: Any, kept: int) -> None:
    """Refuse fewer rows than there must be to find and to judge.

    Raises:
        TooFewPairs: Of a circuit.
        NothingKept: None would be left to score, or to fit on.
    """
    if isinstance(settings, Circuit):
        judging = round(settings.held_out * kept)
        if min(kept - judging, judging or kept) < _LEAST_PAIRS:
            raise TooFewPairs(kept, 2 * _LEAST_PAIRS if settings.held_out else _LEAST_PAIRS)
    fitted = isinstance(settings, CausalVariable) and settings.featurizer.kind in FITTED
    if fitted and kept < _LEAST_PAIRS:
        raise NothingKept("one row can be used; one to fit on and one to score are needed.")


async def check_features(settings: Any, card: Card, host: Host) -> None:
    """Refuse SAEs that the model does not have, and features that they do not have.

    Raises:
        UnknownDictionary: With those that there are.
        UnknownFeature: With the range.
        BadStudy: Two of one site, or one of a layer that is not looked at.
    """
    saes, sites = card.get("saes", ()), dict[str, str]()
    for path, sae, features in _features(settings):
        if sae not in saes:
            unknown = UnknownDictionary("sparse autoencoder", sae, ", ".join(saes))
            unknown.param = path
            raise unknown
        found = await host.answer(CheckFeatures(sae=sae, features=features))
        _check_site(settings, path, sae, found["site"], sites)
        sites[found["site"]] = sae


def _check_site(settings: Any, path: str, sae: str, site: str, before: Mapping[str, str]) -> None:
    """One SAE for each place of a study, and none for a place that is not looked at."""
    if not isinstance(settings, CausalVariable):
        return
    if site in before:
        raise BadStudy(f"{before[site]} and {sae} both read {site}: one at a time.", path)
    layer = Site.parse(site).block
    looked = {unit.layer for unit in _units(settings) if unit.head is None}
    wanted = looked if settings.units != "sweep" else set(settings.layers)
    if (settings.units != "sweep" or wanted) and layer not in wanted:
        told = ", ".join(map(str, sorted(wanted))) or "none"
        raise BadStudy(f"{sae} reads layer {layer}; layers looked at: {told}.", path)


def _features(settings: Any) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(key, SAE, features of it) of everything that is read."""
    if (sae := getattr(settings, "sae", None)) is not None:
        yield "params.sae", sae, settings.features
    if (featurizer := getattr(settings, "featurizer", None)) is not None:
        for i, name in enumerate(featurizer.saes):
            yield f"params.featurizer.saes.{i}", name, featurizer.features
