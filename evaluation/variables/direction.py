"""From a place that carries a variable to a vector that a request can steer with.

A swap moves the stream by x' - x. Its mean over rows whose swapped value is wanted is what the
features have to be moved by to say that value: a control vector at the unit's site, at strength 1
as long as a typical swap. A single learned direction can be taken as it is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.behaviours.swaps import SwapIds
from evaluation.variables.errors import BadStudy, NoFeatures, NothingKept
from evaluation.variables.featurizers import Directions, Featurizer
from evaluation.variables.table import table, usable
from evaluation.variables.trials import Trials
from evaluation.variables.units import Unit
from models.hosted import HostedModel
from steerers.control_vectors import Vectors


def toward(
    hosted: HostedModel,
    swaps: Sequence[SwapIds],
    variable: str,
    value: str,
    *,
    unit: Unit,
    featurizer: Featurizer,
) -> Vectors:
    """The mean move of swaps after which `value` is expected, at the unit's site.

    Args:
        hosted: The model that the featurizer was fitted on.
        swaps: Interchanges; those that expect another text are left out.
        variable: Which is swapped.
        value: The text that is expected then.
        unit: Of the stream.
        featurizer: Of that unit.

    Raises:
        NothingKept: No swap expects the value.
        NoFeatures: The featurizer swaps nothing.
        UnknownUnit: A head, which no vector is added to.
        BadVector: The swaps cancel each other.
    """
    if featurizer.empty:
        raise NoFeatures(unit.name)
    rows, _ = usable(swaps, variable, [unit.position])
    wanted = [swap for swap in rows if swap.expected_text[variable] == value]
    if not wanted:
        raise NothingKept(f"no swap of {variable} expects {value!r}.")
    here = table(wanted, variable, [unit.position], device=hosted.device)
    trials = Trials(hosted=hosted, table=here, units=(unit,))
    base, source = trials.bases([unit])[unit], trials.sources([unit])[unit]
    moves = (featurizer(base, source) - base)[here.columns[unit.position][0] >= 0]
    header = {"toward": value, "rows": len(wanted)}
    return _vectors(hosted, variable, unit, featurizer, moves.double().mean(0), header)


def direction(
    hosted: HostedModel, variable: str, unit: Unit, featurizer: Featurizer, index: int = 0
) -> Vectors:
    """One learned direction, at length 1; which of its two ends means what, swaps must tell.

    Raises:
        BadStudy: The featurizer has no such direction.
        UnknownUnit: A head.
    """
    features = featurizer.features
    if not isinstance(features, Directions) or not 0 <= index < features.count:
        raise BadStudy(f"The featurizer of {unit.name} has no direction {index}.", "featurizer")
    column = features.rotation[:, index]
    return _vectors(hosted, variable, unit, featurizer, column, {"direction": index})


def _vectors(
    hosted: HostedModel,
    variable: str,
    unit: Unit,
    featurizer: Featurizer,
    vector: Tensor,
    more: dict[str, object],
) -> Vectors:
    header = {
        "base": {"model": hosted.name, "fingerprint": hosted.fingerprint},
        "method": "causal_variable",
        "variable": variable,
        "unit": unit.name,
        "featurizer": featurizer.kind,
        "features": featurizer.count,
        **more,
    }
    return Vectors(header, {unit.site: vector.detach().to(torch.float32).cpu()})
