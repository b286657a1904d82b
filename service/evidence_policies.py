"""Policies: the operator's settings are the floor, and a tenant's own may only be stricter.

A tenant keeps one for each model and one for all of its models, each in place of the one before.
Requests are held against the strictest of the three, key by key.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

from models.errors import MethodNotApplicable
from service.datasets import newest
from service.evidence_errors import PolicyTooLoose
from service.registry import Registry
from service.registry.errors import UnknownName
from service.registry.kinds import POLICY
from service.registry.records import Version
from service.settings import Evidence, Settings

_ANY = "any"
"""Weights, and of a policy for all models the model."""


def _either(this: str, other: str) -> str:
    return "refuse" if "refuse" in (this, other) else "allow"


_STRICTER: Mapping[str, Callable[[Any, Any], Any]] = {
    "feature_gate": max,
    "tau": max,
    "margin": max,
    "kappa": min,
    "rows": max,
    "unverified": _either,
    "edit_audit": max,
    "tolerance": min,
    "pairs": max,
}
"""Of two values of a key, the one that lets less through."""


def stricter(floor: Evidence, told: Mapping[str, Any]) -> Evidence:
    """The floor, and where something stricter is told, that."""
    own = floor.model_dump()
    return Evidence(**{**own, **{k: _STRICTER[k](own[k], value) for k, value in told.items()}})


def policy_of(registry: Registry, tenant: str, model: str, floor: Evidence) -> Evidence:
    """What a tenant's requests to a model are held against."""
    return reduce(stricter, (told for _, told in _told(registry, tenant, model)), floor)


def keep_policy(
    registry: Registry,
    settings: Settings,
    tenant: str,
    model: str | None,
    told: Mapping[str, Any],
    actor: str,
) -> Version:
    """Keep a tenant's policy for one model, or for all.

    Raises:
        PolicyTooLoose: A key would let through what the operator does not.
    """
    for own in settings.models:
        if model in (None, own.name):
            _check(own.name, own.evidence, told)
    body = {"model": model, "thresholds": dict(told), "at": time.time()}
    name = _name(model)
    return registry.presets.put(tenant, POLICY, name, model or _ANY, _ANY, body, actor=actor)


def _check(model: str, floor: Evidence, told: Mapping[str, Any]) -> None:
    for key, value in told.items():
        least = getattr(floor, key)
        if _STRICTER[key](least, value) != value:
            raise PolicyTooLoose(model, key, value, least)


def check_gated(asked: str | None, card: Mapping[str, Any]) -> None:
    """Refuse to ask a model without features for gates.

    Raises:
        MethodNotApplicable: Naming the model's kind.
    """
    if asked == "required" and "context" not in card:
        raise MethodNotApplicable(
            "feature_gate",
            card["title"],
            f"it is a {card['modality']} model, which is not steered by features.",
            remedy="Leave feature_gate out; edit_audit is what edits of this model are asked for.",
            param="feature_gate",
        )


def policies(registry: Registry, settings: Settings, tenant: str) -> list[dict[str, Any]]:
    """What each hosted model asks of a tenant, and who says so."""
    return [
        {
            "object": "policy",
            "model": model.name,
            **_said(policy_of(registry, tenant, model.name, model.evidence)),
            "operator": _said(model.evidence),
            "own": [
                {"model": one, "thresholds": dict(told)}
                for one, told in _told(registry, tenant, model.name)
            ],
        }
        for model in settings.models
    ]


def _said(asked: Evidence) -> dict[str, Any]:
    return {
        "feature_gate": "required" if asked.feature_gate else "off",
        "edit_audit": "required" if asked.edit_audit else "off",
        "unverified": asked.unverified,
        "thresholds": asked.model_dump(exclude={"feature_gate", "edit_audit", "unverified"}),
    }


def _told(
    registry: Registry, tenant: str, model: str
) -> Iterable[tuple[str | None, Mapping[str, Any]]]:
    """The tenant's own: for all of its models, and for this one."""
    for one in (None, model):
        try:
            yield one, newest(registry, tenant, POLICY, _name(one)).header["thresholds"]
        except UnknownName:
            continue


def _name(model: str | None) -> str:
    """What a policy is kept under: model names may be longer than names are."""
    return f"policy-{hashlib.sha256((model or '').encode()).hexdigest()[:24]}"
