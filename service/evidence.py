"""What gates and audits measured as evidence, and the policies that ask for it.

A gate speaks for one feature, or for one set of features, of one dictionary in one model's weights;
an audit for one version of an edit. What they measured is kept under names made of what they speak
for, so that one look-up answers a request, and is held against the operator's thresholds when it is
asked for. Policies are off unless the operator sets a model's `evidence.feature_gate` or
`evidence.edit_audit`.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.datasets import newest
from service.evidence_errors import EditNotAudited, FeatureNotVerified
from service.registry import Registry
from service.registry.errors import UnknownName
from service.registry.kinds import EVIDENCE
from service.registry.records import Job
from service.registry.tables import canonical
from service.settings import Evidence, Settings


def gate_name(sae_digest: str, features: Iterable[int]) -> str:
    """What a verdict on these features is kept under."""
    some = sorted(set(features))
    told = str(some[0]) if len(some) == 1 else hashlib.sha256(str(some).encode()).hexdigest()[:16]
    return f"gate-{sae_digest[:24]}-{told}"


def audit_name(digest: str) -> str:
    """What a verdict on this version is kept under."""
    return f"audit-{digest[:24]}"


def gated(registry: Registry, job: Job, report: Mapping[str, Any]) -> None:
    """Keep what was measured of every gate of a report."""
    shared = {"kept": report["kept"], "iia_full_vector": report["iia_full_vector"]}
    for gate in report["gates"]:
        name = gate_name(report["sae_digest"], gate["features"])
        _keep(registry, job, name, report["fingerprint"], {**gate, **shared})


def audited(registry: Registry, job: Job, report: Mapping[str, Any]) -> None:
    """Keep what an audit of one edit measured; of several together it speaks for none alone."""
    if len(job.payload["edits"]) == 1:
        (edit,) = job.payload["edits"]
        told = {key: report[key] for key in ("verdict", "suites")}
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
        actor=job.created_by,
        kind=EVIDENCE,
    )


def gate_passes(told: Mapping[str, Any], asked: Evidence) -> bool:
    """Whether what was measured of a gate is enough, whatever its own params said."""
    bar = max(
        asked.tau * told["iia_full_vector"]["value"],
        told["iia_random_matched"]["value"] + asked.margin,
    )
    moved = told["off_target_kl"]
    return (
        told["kept"] >= asked.rows
        and told["iia"]["value"] >= bar
        and moved is not None
        and moved["value"] <= asked.kappa
    )


def audit_passes(told: Mapping[str, Any], asked: Evidence) -> bool:
    """The same of an audit: of each of its suites."""
    return all(_suite_passes(suite, asked) for suite in told["suites"])


def _suite_passes(suite: Mapping[str, Any], asked: Evidence) -> bool:
    if suite["pairs"] < asked.pairs or suite["unchanged"] is None:
        return False
    if 1 - suite["unchanged"] > asked.tolerance:
        return False
    if (circuit := suite["circuit"]) is None:
        return True
    both = [(f, circuit["f_after"][k]) for k, f in circuit["f_before"].items()]
    return all(a is not None and b is not None and abs(b - a) <= asked.tolerance for a, b in both)


@dataclass(frozen=True, kw_only=True)
class Gatekeeper:
    """Asks for gates before features of one model steer.

    Attributes:
        model: As requests call it.
        fingerprint: Of its weights.
        asked: Its policy.
    """

    registry: Registry
    model: str
    fingerprint: str
    asked: Evidence

    def check(self, tenant: str, reports: Sequence[Mapping[str, Any]]) -> None:
        """Refuse features that no gate speaks for, one by one or as the whole of an entry.

        Args:
            tenant: Whose verdicts count.
            reports: What steering chose: `features` with their dictionaries.

        Raises:
            FeatureNotVerified: Naming the features and the evaluation to run.
        """
        if not self.asked.feature_gate:
            return
        for report in reports:
            by_sae: dict[tuple[str, str], list[int]] = {}
            for use in report.get("features", ()):
                by_sae.setdefault((use["sae"], use["sae_digest"]), []).append(use["feature"])
            for (sae, digest), features in by_sae.items():
                self._check(tenant, sae, digest, list(dict.fromkeys(features)))

    def _check(self, tenant: str, sae: str, digest: str, features: Sequence[int]) -> None:
        if self._passed(tenant, digest, features):
            return
        missing = [f for f in features if not self._passed(tenant, digest, [f])]
        if missing:
            raise FeatureNotVerified(sae, missing, self.model)

    def _passed(self, tenant: str, digest: str, features: Sequence[int]) -> bool:
        told = _newest(self.registry, tenant, gate_name(digest, features), self.fingerprint)
        return told is not None and gate_passes(told, self.asked)


def check_audit(
    registry: Registry, settings: Settings, tenant: str, name: str, number: int
) -> None:
    """Refuse a version that no audit speaks for, where its model's policy asks for one.

    Raises:
        EditNotAudited: Naming the evaluation to run.
        UnknownEdit, UnknownVersion: There is none.
    """
    asking = {m.name: m.evidence for m in settings.models if m.evidence.edit_audit}
    if not asking:
        return
    version = registry.edits.version(tenant, name, number)
    if version.model not in asking or version.kind != "edit":
        return
    told = _newest(registry, tenant, audit_name(version.digest), version.fingerprint)
    if told is None or not audit_passes(told, asking[version.model]):
        raise EditNotAudited(version.reference, version.model)


def _newest(
    registry: Registry, tenant: str, name: str, fingerprint: str
) -> Mapping[str, Any] | None:
    """What was measured last under that name, if it was of these very weights."""
    try:
        found = newest(registry, tenant, EVIDENCE, name)
    except UnknownName:
        return None
    return found.report if found.fingerprint == fingerprint else None


def policies(settings: Settings) -> list[dict[str, Any]]:
    """What each hosted model asks for."""
    return [
        {
            "object": "policy",
            "model": model.name,
            "feature_gate": "required" if model.evidence.feature_gate else "off",
            "edit_audit": "required" if model.evidence.edit_audit else "off",
            "thresholds": model.evidence.model_dump(exclude={"feature_gate", "edit_audit"}),
        }
        for model in settings.models
    ]
