"""What gates and audits measured as evidence, and the policies that ask for it.

A gate speaks for one feature, or for one set of features, of one dictionary in one model's weights;
an audit for one version of an edit. What they measured is kept under names made of what they speak
for, so that one look-up answers a request, and is held against the operator's thresholds when it is
asked for. Policies (`service.evidence_policies`) are off unless the operator or the tenant sets
`feature_gate` or `edit_audit`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.datasets import newest
from service.evidence_errors import EditNotAudited, FeatureNotVerified, NoAdvice
from service.evidence_policies import policy_of
from service.evidence_shortfalls import audit_shortfalls, gate_shortfalls, missed
from service.registry import Registry
from service.registry.errors import UnknownName
from service.registry.kinds import EVIDENCE
from service.registry.records import Job
from service.registry.tables import canonical
from service.schema import FactBody
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
    shared = {key: report[key] for key in ("kept", "iia_full_vector")}
    shared["strength"] = report["settings"]["strength"]
    for gate in report["gates"]:
        name = gate_name(report["sae_digest"], gate["features"])
        _keep(registry, job, name, report["fingerprint"], {**gate, **shared})


def audited(registry: Registry, job: Job, report: Mapping[str, Any]) -> None:
    """Keep what an audit of one edit measured; of several together it speaks for none alone."""
    if len(job.payload["edits"]) == 1:
        (edit,) = job.payload["edits"]
        told = {key: report[key] for key in ("verdict", "suites")}
        _keep(registry, job, audit_name(edit["digest"]), report["fingerprint"], told)


def advice_name(model: str, operation: str) -> str:
    """What advice about an operation on a model is kept under."""
    return f"advice-{operation}-{hashlib.sha256(model.encode()).hexdigest()[:24]}"


def advised(registry: Registry, job: Job, report: Mapping[str, Any]) -> None:
    """Keep which layers serve, best first.

    Not of an edited model, nor of one of several encoders: an edit is written into the model as it
    is, and into all of its encoders.
    """
    if job.payload["edits"] or len(report["encoders"]) > 1:
        return
    name = advice_name(job.model, report["settings"]["operation"])
    told = {key: report[key] for key in ("ranked", "recommended", "pairs")}
    _keep(registry, job, name, report["fingerprint"], told)


def with_advice(registry: Registry, tenant: str, fingerprint: str, body: FactBody) -> FactBody:
    """A fact edit whose block is `auto` with the best one of the newest advice.

    Raises:
        NoAdvice: Naming the evaluation to run.
    """
    if body.options.get("block") != "auto":
        return body
    told = _newest(registry, tenant, advice_name(body.model, body.method), fingerprint)
    if told is None or not told["ranked"]:
        raise NoAdvice(body.model, body.method)
    return body.model_copy(update={"options": {**body.options, "block": told["ranked"][0]}})


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


@dataclass(frozen=True, kw_only=True)
class Gatekeeper:
    """Asks for gates before features of one model steer.

    Attributes:
        model: As requests call it.
        fingerprint: Of its weights.
        floor: What its operator asks for.
    """

    registry: Registry
    model: str
    fingerprint: str
    floor: Evidence

    def check(
        self, tenant: str, reports: Sequence[Mapping[str, Any]], *, unverified: bool = False
    ) -> tuple[dict[str, Any], ...]:
        """Refuse features that no gate speaks for, one by one or as the whole of an entry.

        Args:
            tenant: Whose verdicts and policy count.
            reports: What steering chose: `features` with their dictionaries.
            unverified: Whether the request goes on with them where the policy permits it.

        Returns:
            What went on so: per dictionary its id and the features.

        Raises:
            FeatureNotVerified: Naming the features and the evaluation to run.
        """
        if not any(report.get("features") for report in reports):
            return ()
        asked = policy_of(self.registry, tenant, self.model, self.floor)
        if not asked.feature_gate:
            return ()
        missing: dict[str, dict[int, str]] = {}
        for (sae, digest), features in _uses(reports):
            missing.setdefault(sae, {}).update(self._missing(tenant, digest, features, asked))
        found = {sae: dict(sorted(some.items())) for sae, some in missing.items() if some}
        allowed = asked.unverified == "allow"
        for sae, why in found.items():
            if not (unverified and allowed):
                raise FeatureNotVerified(
                    sae,
                    why,
                    self.model,
                    _gate_bars(asked),
                    concepts=_found_for(reports, sae, why),
                    allowed=allowed,
                )
        return tuple({"sae": sae, "features": list(why)} for sae, why in found.items())

    def permits(self, tenant: str, unverified: bool) -> Callable[[str, int], bool]:
        """Which features a concept may be steered with, by their dictionary's digest.

        Args:
            tenant: Whose verdicts and policy count.
            unverified: As `check`: where the policy permits it, all of them.
        """
        asked = policy_of(self.registry, tenant, self.model, self.floor)
        if not asked.feature_gate or (unverified and asked.unverified == "allow"):
            return lambda _digest, _feature: True
        return lambda digest, feature: self._missed(tenant, digest, [feature], asked) is None

    def _missing(
        self, tenant: str, digest: str, features: Sequence[int], asked: Evidence
    ) -> dict[int, str]:
        """Features for which neither a gate of the whole set speaks, nor one of their own: why."""
        of_set = self._missed(tenant, digest, features, asked)
        if of_set is None or len(features) == 1:
            return {} if of_set is None else {features[0]: of_set}
        told = {f: self._missed(tenant, digest, [f], asked) for f in features}
        return {f: why for f, why in told.items() if why is not None}

    def _missed(
        self, tenant: str, digest: str, features: Sequence[int], asked: Evidence
    ) -> str | None:
        """Why no gate of exactly these features speaks for them; None if one does."""
        told = _newest(self.registry, tenant, gate_name(digest, features), self.fingerprint)
        lacks = () if told is None else gate_shortfalls(told, asked)
        return missed("gate", told, lacks) if told is None or lacks else None


def _found_for(
    reports: Sequence[Mapping[str, Any]], sae: str, why: Mapping[int, str]
) -> dict[str, list[int]]:
    """By concept that the refused features were found for: all that were, the best first."""
    uses = [use for report in reports for use in report.get("features", ())]
    asked = {use["concept"] for use in uses if use["sae"] == sae and use["feature"] in why}
    told = [one for report in reports for one in report.get("concepts", ())]
    return {
        one["concept"]: [candidate["feature"] for candidate in one["kept"] or one["dropped"]]
        for one in told
        if one["sae"] == sae and one["concept"] in asked
    }


def _gate_bars(asked: Evidence) -> str:
    """The thresholds of a policy, as settings name them."""
    return f"tau {asked.tau:g}, margin {asked.margin:g}, kappa {asked.kappa:g}, rows {asked.rows}"


def _uses(
    reports: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[tuple[str, str], list[int]]]:
    """Per entry and dictionary (its id, its digest) the features that steer."""
    for report in reports:
        by_sae: dict[tuple[str, str], list[int]] = {}
        for use in report.get("features", ()):
            by_sae.setdefault((use["sae"], use["sae_digest"]), []).append(use["feature"])
        for sae, features in by_sae.items():
            yield sae, list(dict.fromkeys(features))


def check_audit(
    registry: Registry, settings: Settings, tenant: str, name: str, number: int
) -> None:
    """Refuse a version that no audit speaks for, where its model's policy asks for one.

    Raises:
        EditNotAudited: Naming the evaluation to run.
        UnknownEdit, UnknownVersion: There is none.
    """
    version = registry.edits.version(tenant, name, number)
    floors = {model.name: model.evidence for model in settings.models}
    if version.model not in floors or version.kind != "edit":
        return
    asked = policy_of(registry, tenant, version.model, floors[version.model])
    if not asked.edit_audit:
        return
    told = _newest(registry, tenant, audit_name(version.digest), version.fingerprint)
    lacks = () if told is None else audit_shortfalls(told, asked)
    if told is None or lacks:
        why = missed("audit of it alone", told, lacks)
        bars = f"tolerance {asked.tolerance:g}, pairs {asked.pairs}"
        raise EditNotAudited(version.reference, version.model, why, bars)


def _newest(
    registry: Registry, tenant: str, name: str, fingerprint: str
) -> Mapping[str, Any] | None:
    """What was measured last under that name, if it was of these very weights."""
    try:
        found = newest(registry, tenant, EVIDENCE, name)
    except UnknownName:
        return None
    return found.report if found.fingerprint == fingerprint else None
