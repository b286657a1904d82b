"""What can be said of an evaluation at the door: its model, its rows, the places that it names.

A job would come to the same refusal, but only after it has waited and loaded a model.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evaluation.variables.errors import BadStudy, NothingKept, UnknownUnit
from evaluation.variables.units import ALL, Unit
from models.decoder import TOWER
from models.errors import MethodNotApplicable
from service.datasets import Dataset
from service.questions import CheckFeatures
from service.registry.records import Version
from service.workbench import Host
from steerers.errors import UnknownDictionary

Card = Mapping[str, Any]
_WRITES = ("circuit", "causal_variable", "feature_gate")
"""Kinds for models that continue texts."""
_OPERATIONS = {"refact": "refact", "backpatch": "back_patch", "sae": "sae"}
"""By operation of advice the method that a model must be able to."""


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


def check_places(settings: Any, card: Card, dataset: Dataset) -> None:
    """Refuse a variable, layers, heads or positions that the rows or the model do not have.

    Raises:
        BadStudy: No row names the variable; rows without what the metric is measured with.
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
    positions = {ALL, *(name for swap in dataset.swaps for name in swap.positions)}
    for path, layer, head, position in _places(settings):
        _check_place(path, layer, head, card)
        if position is not None and position not in positions:
            problem = f"the rows name {', '.join(sorted(positions))}."
            raise UnknownUnit(f"position {position!r}", problem, path)


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


def check_kept(version: Version, rows: str, model: str) -> None:
    """Refuse a data set of which the model can use no row.

    What a data set says of its rows is of the model that it was made for; of others nothing is
    known yet.

    Raises:
        NothingKept: With the commonest reason.
    """
    told = (version.report or {}).get(rows)
    if told is None or version.model != model or told["kept"]:
        return
    reasons = [row["reason"] for row in told["dropped"]]
    common = max(sorted(set(reasons)), key=reasons.count) if reasons else "it has none"
    raise NothingKept(f"{model} can use 0 of {len(reasons)} {rows} of {version.name}: {common}.")


async def check_features(settings: Any, card: Card, host: Host) -> None:
    """Refuse SAEs that the model does not have, and features that they do not have.

    Raises:
        UnknownDictionary: With those that there are.
        UnknownFeature: With the range.
    """
    saes = card.get("saes", ())
    for path, sae, features in _features(settings):
        if sae not in saes:
            unknown = UnknownDictionary("sparse autoencoder", sae, ", ".join(saes))
            unknown.param = path
            raise unknown
        await host.answer(CheckFeatures(sae=sae, features=features))


def _features(settings: Any) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(key, SAE, features of it) of everything that is read."""
    if (sae := getattr(settings, "sae", None)) is not None:
        yield "params.sae", sae, settings.features
    if (featurizer := getattr(settings, "featurizer", None)) is not None:
        for i, name in enumerate(featurizer.saes):
            yield f"params.featurizer.saes.{i}", name, featurizer.features
