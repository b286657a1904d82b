"""Params of an evaluation that nothing would read: refused by their path, never ignored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.variables.settings import FITTED, LEARNED, OF_SAE
from service.errors import BadRequest

_DIRECTED = ("das", "pca", "svd", "dbm_pca", "dbm_svd")
"""Featurizers of so many directions."""


@dataclass(frozen=True, kw_only=True)
class _Only:
    """A param that is read in some settings only.

    Attributes:
        key: Its path below `params`.
        read: Whether these settings read it.
        by: What does.
    """

    key: str
    read: Callable[[Any], bool]
    by: str


def _kind(*kinds: str) -> Callable[[Any], bool]:
    return lambda settings: settings.featurizer.kind in kinds


_SWEEP = {"read": lambda s: s.units == "sweep", "by": 'units "sweep"; named units say where'}
_ANSWERS = _Only(key="answers", read=lambda _: False, by="the data set, which has its own answers")
_ONLY: Mapping[str, tuple[_Only, ...]] = {
    "circuit": (
        _Only(key="sampling", read=lambda s: s.method == "ugs", by='method "ugs"'),
        _Only(key="learning", read=lambda s: s.ablation == "optimal", by='ablation "optimal"'),
    ),
    "causal_variable": (
        _Only(key="layers", **_SWEEP),
        _Only(key="positions", **_SWEEP),
        _Only(key="featurizer.n", read=_kind(*_DIRECTED), by=f"{', '.join(_DIRECTED)}"),
        _Only(key="featurizer.saes", read=_kind(*OF_SAE), by=", ".join(sorted(OF_SAE))),
        _Only(key="featurizer.features", read=_kind("sae"), by="sae"),
        _Only(key="recipe", read=_kind(*LEARNED), by=", ".join(sorted(LEARNED))),
        _Only(key="held_out", read=_kind(*FITTED), by=", ".join(sorted(FITTED))),
        _Only(
            key="coefficients",
            read=lambda s: s.metric == "logit_difference",
            by='metric "logit_difference"',
        ),
        _Only(
            key="save.index",
            read=lambda s: s.save.toward is None,
            by="a save of a learned direction; save.toward takes the mean move of the swaps",
        ),
    ),
    "layer_advice": (
        _Only(key="target", read=lambda s: s.operation == "backpatch", by='operation "backpatch"'),
        _ANSWERS,
    ),
    "edit_audit": (_ANSWERS,),
}


def check_read(kind: str, params: Mapping[str, Any], settings: Any) -> None:
    """Refuse what was given and is read by other settings only.

    Args:
        kind: Of the evaluation.
        params: As they were sent.
        settings: What was made of them.

    Raises:
        BadRequest: Naming the param and what reads it.
    """
    for one in _ONLY.get(kind, ()):
        if _given(params, one.key) and not one.read(settings):
            raise BadRequest(
                f"params.{one.key} says nothing here; it is read by {one.by}.",
                remedy="Leave it out, or ask for what reads it.",
                param=f"params.{one.key}",
            )


def _given(params: Mapping[str, Any], key: str) -> bool:
    """Whether anything was said there; null and empty lists say nothing."""
    told: Any = params
    for part in key.split("."):
        told = told.get(part) if isinstance(told, Mapping) else None
    return told is not None and told not in ([], ())
