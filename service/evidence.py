"""Verdicts as evidence, and the policies that ask for it.

A passed gate speaks for one feature, or for one set of features, of one dictionary in one model's
weights; a passed audit for one version of an edit. Both are kept under names made of what they
speak for, so that one look-up answers a request. Policies are off unless the operator sets
`evidence.feature_gate` or `evidence.edit_audit` of a model.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from service.datasets import newest
from service.evidence_errors import EditNotAudited, FeatureNotVerified
from service.registry import Registry
from service.registry.errors import UnknownName
from service.registry.kinds import EVIDENCE
from service.registry.records import Job, Version
from service.registry.tables import canonical
from service.settings import Settings


def gate_name(sae_digest: str, features: Iterable[int]) -> str:
    """What a verdict on these features is kept under."""
    some = sorted(set(features))
    told = str(some[0]) if len(some) == 1 else hashlib.sha256(str(some).encode()).hexdigest()[:16]
    return f"gate-{sae_digest[:24]}-{told}"


def audit_name(digest: str) -> str:
    """What a verdict on this version is kept under."""
    return f"audit-{digest[:24]}"


def gated(registry: Registry, job: Job, report: Mapping[str, Any]) -> None:
    """Keep the verdict of every gate of a report."""
    for gate in report["gates"]:
        name = gate_name(report["sae_digest"], gate["features"])
        _keep(registry, job, name, report["fingerprint"], gate)


def audited(registry: Registry, job: Job, report: Mapping[str, Any]) -> None:
    """Keep the verdict of an audit of one edit; of several together it speaks for none alone."""
    if len(job.payload["edits"]) == 1:
        (edit,) = job.payload["edits"]
        suites = {s["name"]: s["verdict"] for s in report["suites"]}
        told = {"verdict": report["verdict"], "suites": suites, "digest": edit["digest"]}
        _keep(registry, job, audit_name(edit["digest"]), report["fingerprint"], told)


def _keep(
    registry: Registry, job: Job, name: str, fingerprint: str, told: Mapping[str, Any]
) -> None:
    body = {"evaluation": job.payload["id"], "fingerprint": fingerprint, **told}
    registry.edits.register(
        job.tenant,
        name,
        job.model,
        fingerprint,
        canonical({**body, "job": job.id}).encode(),
        header={"evaluation": job.payload["id"], "kind": job.kind},
        report=body,
        status="ready" if told["verdict"] == "pass" else "failed_checks",
        actor=job.created_by,
        kind=EVIDENCE,
    )


def passed(registry: Registry, tenant: str, name: str, fingerprint: str) -> bool:
    """Whether the newest verdict of that name is a pass, for these very weights."""
    try:
        found: Version = newest(registry, tenant, EVIDENCE, name)
    except UnknownName:
        return False
    return found.fingerprint == fingerprint and found.status == "ready"


def check_features(
    registry: Registry,
    tenant: str,
    model: str,
    fingerprint: str,
    reports: Sequence[Mapping[str, Any]],
) -> None:
    """Refuse features that no gate speaks for, one by one or as the whole of an entry.

    Args:
        registry: Where verdicts are.
        tenant: Whose.
        model: As requests call it.
        fingerprint: Of its weights.
        reports: What steering chose: `features` with their dictionaries.

    Raises:
        FeatureNotVerified: Naming the features and the evaluation to run.
    """
    for report in reports:
        by_sae: dict[tuple[str, str], list[int]] = {}
        for use in report.get("features", ()):
            by_sae.setdefault((use["sae"], use["sae_digest"]), []).append(use["feature"])
        for (sae, digest), features in by_sae.items():
            if passed(registry, tenant, gate_name(digest, features), fingerprint):
                continue
            missing = [
                f
                for f in dict.fromkeys(features)
                if not passed(registry, tenant, gate_name(digest, [f]), fingerprint)
            ]
            if missing:
                raise FeatureNotVerified(sae, missing, model)


def check_audit(
    registry: Registry, settings: Settings, tenant: str, name: str, number: int
) -> None:
    """Refuse a version that no audit speaks for, where its model's policy asks for one.

    Raises:
        EditNotAudited: Naming the evaluation to run.
        UnknownEdit, UnknownVersion: There is none.
    """
    asking = {model.name for model in settings.models if model.evidence.edit_audit}
    if not asking:
        return
    version = registry.edits.version(tenant, name, number)
    if version.model not in asking or version.kind != "edit":
        return
    if not passed(registry, tenant, audit_name(version.digest), version.fingerprint):
        raise EditNotAudited(version.reference, version.model)


def policies(settings: Settings) -> list[dict[str, Any]]:
    """What each hosted model asks for."""
    return [
        {
            "object": "policy",
            "model": model.name,
            "feature_gate": "required" if model.evidence.feature_gate else "off",
            "edit_audit": "required" if model.evidence.edit_audit else "off",
        }
        for model in settings.models
    ]
