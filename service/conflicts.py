"""Two live edits that say different things of nearly the same key: found when one is registered.

Source: ReFACT's specification, section 6.2. |rho| of two keys, as the second moment measures them,
tells whether they are the same subject; the other edit must then say the same, or be replaced.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from editors import joint
from editors.delta import Delta
from editors.neighbours import spoken
from service.errors import FactConflict, NotReplaceable
from service.registry import Registry
from service.registry.errors import (
    OF_REFERENCES,
    NoReadyVersion,
    VersionBlocked,
    VersionRetired,
)
from service.registry.grammar import parse_reference

_PAGE = 200


@dataclass(frozen=True, kw_only=True)
class Live:
    """The live edits that a new one is compared with.

    Attributes:
        named: One for each name: what the bare name means now.
        cut: Whether there are more than were compared.
    """

    named: tuple[joint.Named, ...] = ()
    cut: bool = False


def live(
    registry: Registry,
    delta: Callable[[str], Delta],
    *,
    tenant: str,
    fingerprint: str,
    without: str,
    most: int,
) -> Live:
    """The tenant's live edits of these weights, by name, except those named `without`."""
    found: list[joint.Named] = []
    after: str | None = None
    while True:
        page = registry.edits.list(tenant, _PAGE, after)
        for edit in page.items:
            with suppress(NoReadyVersion, VersionRetired, VersionBlocked):
                version = registry.names.resolve(tenant, edit.name)
                if version.name == without or version.fingerprint != fingerprint:
                    continue
                if len(found) == most:
                    return Live(named=tuple(found), cut=True)
                found.append(joint.Named(name=version.reference, delta=delta(version.digest)))
        if not page.has_more:
            return Live(named=tuple(found))
        after = page.next_cursor


def check_conflicts(
    delta: Delta, others: Sequence[joint.Named], replaces: Sequence[str], overlap: float
) -> None:
    """Refuse a delta that contradicts a live edit which it does not replace.

    Args:
        delta: The new one.
        others: Live edits, named as `name@version`.
        replaces: Names, or `name@version`, that it may contradict.
        overlap: From which |rho| on two keys are one subject.

    Raises:
        FactConflict: Naming all that it contradicts.
    """
    allowed, mine = set(replaces), _said(delta.header)
    found = {
        other.name: rho
        for other in others
        if not {other.name, other.name.partition("@")[0]} & allowed
        and _said(other.delta.header) != mine
        and (rho := overlap_of(delta, other.delta)) >= overlap
    }
    if found:
        raise FactConflict(found)


def overlap_of(mine: Delta, theirs: Delta) -> float:
    """The largest |rho| between a key of the one and a key of the other, at any common site."""
    worst = 0.0
    for site, f in mine.factors.items():
        other = theirs.factors.get(site)
        if other is None or not len(f.keys) or not len(other.keys):
            continue
        keys = torch.cat([f.keys, other.keys]).double()
        solved = torch.cat([f.solved, other.solved]).double()
        rho = joint.overlap(solved @ keys.mT)[: len(f.keys), len(f.keys) :]
        worst = max(worst, float(rho.abs().max()))
    return worst


def _said(header: Mapping[str, Any]) -> tuple[str, frozenset[str]] | None:
    """What an edit wants its subject to mean; None if it does not say."""
    fact = header.get("fact")
    if not fact:
        return None
    return spoken(fact.get("target") or ""), frozenset(fact.get("target_images") or ())


def replaced(registry: Registry, tenant: str, texts: Sequence[str]) -> list[str]:
    """What a request says it replaces, as `name` or `name@version`; an alias is followed now.

    Raises:
        BadReference, NotReplaceable: Not the name of an edit.
        UnknownEdit, UnknownVersion, UnknownAlias: The tenant has no such thing.
    """
    try:
        return [_replaced(registry, tenant, text) for text in texts]
    except OF_REFERENCES as refusal:
        raise refusal.at("edit", "replaces") from None


def _replaced(registry: Registry, tenant: str, text: str) -> str:
    reference = parse_reference(text)
    if reference.name is None:
        raise NotReplaceable(text)
    if reference.number is not None:
        return registry.edits.version(tenant, reference.name, reference.number).reference
    if reference.alias is not None:
        pointed = registry.names.alias(tenant, reference.name, reference.alias)
        return f"{reference.name}@{pointed.version}"
    return registry.edits.get(tenant, reference.name).name
