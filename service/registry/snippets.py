"""Snippets: where in a sample of texts each feature of a dictionary was strongest.

A sample is written feature by feature and seen only once it is whole; the tenant's next sample of
the same weights and dictionary takes its place. A job that is begun again writes anew.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from service.registry.audit import Deed, record
from service.registry.errors import BadRecord, RegistryFull
from service.registry.grammar import PUBLIC, checked_json, checked_text
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import FeatureSnippets, SnippetSet
from service.registry.scores import batches
from service.registry.tables import canonical, snippet_sets, snippets

_AT_ONCE = 200
"""Features that one transaction writes."""

_FORGOTTEN_SECONDS = 24 * 3600.0
"""A sample that is not whole after so long was left behind by a crash."""


@dataclass(frozen=True, kw_only=True)
class Snippets:
    """`Registry.snippets`; samples of the tenant `public` are read by everybody."""

    index: Index
    limits: Limits

    def begin(
        self, tenant: str, fingerprint: str, sae: str, told: Mapping[str, Any], *, actor: str
    ) -> int:
        """Begin a sample, which nobody sees before `finish`; its number.

        Args:
            tenant: Who may read the texts.
            fingerprint: Of the weights that read them.
            sae: The dictionary's digest.
            told: The sample: its digest, how many texts and tokens.
            actor: Who goes into the audit.

        Raises:
            BadRecord: Outside the limits.
            RegistryFull: The tenant has as many samples as one may have.
        """
        for what, text in (("fingerprint", fingerprint), ("sae", sae), ("actor", actor)):
            checked_text(what, text, self.limits.text_bytes)
        checked_json("sample", dict(told), self.limits.header_bytes)
        return self._begun(tenant, fingerprint, sae, told, actor)

    def add(self, number: int, found: Sequence[FeatureSnippets]) -> None:
        """Keep the snippets of some features.

        Raises:
            BadRecord: Outside the limits.
        """
        packed = [{**self._packed(one), "sample": number} for one in found]
        for batch in batches(packed, _AT_ONCE):
            with self.index.working() as connection:
                connection.execute(snippets.insert(), batch)

    def _packed(self, one: FeatureSnippets) -> dict[str, Any]:
        if len(one.snippets) > self.limits.snippets:
            told = f"{len(one.snippets)} of at most {self.limits.snippets} a feature"
            raise BadRecord("snippets", told)
        checked_json("snippets", list(one.snippets), self.limits.snippet_bytes)
        return {
            "feature": one.feature,
            "strongest": one.strongest,
            "input_score": one.input_score,
            "packed": zlib.compress(canonical(list(one.snippets)).encode()),
        }

    def _begun(
        self, tenant: str, fingerprint: str, sae: str, told: Mapping[str, Any], actor: str
    ) -> int:
        mine = sa.select(sa.func.count()).where(
            snippet_sets.c.tenant == tenant, snippet_sets.c.finished_at.is_not(None)
        )
        with self.index.working() as connection:
            at = self.index.now(connection)
            lost = snippet_sets.c.finished_at.is_(None) & (
                snippet_sets.c.created_at < at - _FORGOTTEN_SECONDS
            )
            connection.execute(snippet_sets.delete().where(lost))
            had = _newest(connection, (tenant,), fingerprint, sae)
            if had is None and connection.execute(mine).scalar_one() >= self.limits.snippet_sets:
                raise RegistryFull("samples", self.limits.snippet_sets)
            fresh = snippet_sets.insert().values(
                tenant=tenant,
                fingerprint=fingerprint,
                sae=sae,
                told=dict(told),
                created_at=at,
                created_by=actor,
            )
            return connection.execute(fresh.returning(snippet_sets.c.id)).scalar_one()

    def finish(self, number: int) -> SnippetSet:
        """The sample is whole: from now on it is read in the place of the tenant's last one."""
        with self.index.writing() as connection:
            at = self.index.now(connection)
            count = sa.select(sa.func.count()).where(snippets.c.sample == number)
            features = connection.execute(count).scalar_one()
            finish = snippet_sets.update().where(snippet_sets.c.id == number)
            row = connection.execute(finish.values(finished_at=at).returning(snippet_sets)).one()
            others = sa.and_(
                snippet_sets.c.tenant == row.tenant,
                snippet_sets.c.fingerprint == row.fingerprint,
                snippet_sets.c.sae == row.sae,
                snippet_sets.c.finished_at.is_not(None),
                snippet_sets.c.id != number,
            )
            connection.execute(snippet_sets.delete().where(others))
            deed = Deed(
                tenant=row.tenant,
                actor=row.created_by,
                action="snippets.put",
                subject=f"sha256:{row.sae[:16]}",
                detail={"features": features, "sample": row.told},
            )
            record(connection, at, deed)
            return _as_set(row)

    def sample(self, tenant: str, fingerprint: str, sae: str) -> SnippetSet | None:
        """The tenant's own sample, else the public one; None if there is neither."""
        with self.index.reading() as connection:
            row = _newest(connection, (tenant, PUBLIC), fingerprint, sae)
        return _as_set(row) if row else None

    def of(
        self, tenant: str, fingerprint: str, sae: str, features: Sequence[int]
    ) -> dict[int, FeatureSnippets]:
        """The snippets of these features; features that were never active are left out."""
        found: dict[int, FeatureSnippets] = {}
        with self.index.reading() as connection:
            sample = _newest(connection, (tenant, PUBLIC), fingerprint, sae)
            if sample is None:
                return {}
            for batch in batches(sorted(set(features)), _AT_ONCE):
                query = sa.select(snippets).where(
                    snippets.c.sample == sample.id, snippets.c.feature.in_(batch)
                )
                found |= {row.feature: _unpacked(row) for row in connection.execute(query)}
        return found

    def input_scores(
        self, tenant: str, fingerprint: str, sae: str, features: Sequence[int]
    ) -> dict[int, float | None]:
        """The input scores of these features, without their snippets."""
        found: dict[int, float | None] = {}
        with self.index.reading() as connection:
            sample = _newest(connection, (tenant, PUBLIC), fingerprint, sae)
            if sample is None:
                return {}
            for batch in batches(sorted(set(features)), _AT_ONCE):
                query = sa.select(snippets.c.feature, snippets.c.input_score).where(
                    snippets.c.sample == sample.id, snippets.c.feature.in_(batch)
                )
                found |= {row.feature: row.input_score for row in connection.execute(query)}
        return found


def _newest(
    connection: Connection, tenants: Sequence[str], fingerprint: str, sae: str
) -> Row[Any] | None:
    query = (
        sa.select(snippet_sets)
        .where(
            snippet_sets.c.tenant.in_(tenants),
            snippet_sets.c.fingerprint == fingerprint,
            snippet_sets.c.sae == sae,
            snippet_sets.c.finished_at.is_not(None),
        )
        .order_by(snippet_sets.c.tenant != tenants[0], snippet_sets.c.id.desc())
        .limit(1)
    )
    return connection.execute(query).first()


def _as_set(row: Row[Any]) -> SnippetSet:
    return SnippetSet(
        id=row.id,
        tenant=row.tenant,
        fingerprint=row.fingerprint,
        sae=row.sae,
        told=row.told,
        created_at=row.created_at,
        created_by=row.created_by,
    )


def _unpacked(row: Row[Any]) -> FeatureSnippets:
    return FeatureSnippets(
        feature=row.feature,
        strongest=row.strongest,
        input_score=row.input_score,
        snippets=tuple(json.loads(zlib.decompress(row.packed))),
    )
