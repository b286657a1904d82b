"""Labels: what people or machines say that a feature is about, per tenant and source."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from service.registry.audit import Deed, record
from service.registry.errors import BadRecord, RegistryFull
from service.registry.grammar import PUBLIC, checked_limit, checked_text, number_cursor
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import FeatureLabel, Page
from service.registry.scores import batches
from service.registry.tables import feature_labels

_AT_ONCE = 500
_MOST = 2**31 - 1
"""The largest feature number that every database keeps."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """`Registry.labels`; labels of the tenant `public` are read by everybody."""

    index: Index
    limits: Limits

    def put(self, tenant: str, sae: str, labels: Sequence[FeatureLabel], *, actor: str) -> int:
        """Keep labels; one feature has one label of one source, and an empty text removes it.

        Returns how many labels the tenant has for this dictionary now.

        Raises:
            BadRecord: A label outside the limits, or two for one feature and source.
            RegistryFull: More labels than a tenant may have.
        """
        checked_text("actor", actor, self.limits.text_bytes)
        self._check(labels)
        rows = [
            {
                "tenant": tenant,
                "sae": sae,
                "feature": one.feature,
                "source": one.source,
                "label": one.label,
                "folded": folded(one.label),
                "changed_by": actor,
            }
            for one in labels
            if one.label
        ]
        gone = [one for one in labels if not one.label]
        with self.index.writing() as connection:
            at = self.index.now(connection)
            for batch in batches(rows, _AT_ONCE):
                connection.execute(self._upsert(), [{**row, "changed_at": at} for row in batch])
            for one in gone:
                connection.execute(_these(tenant, sae, one))
            count = _count(connection, tenant, sae)
            if count > self.limits.labels:
                raise RegistryFull("labels of this dictionary", self.limits.labels)
            deed = Deed(
                tenant=tenant,
                actor=actor,
                action="labels.put",
                subject=f"sha256:{sae[:16]}",
                detail={"labels": len(rows), "removed": len(gone), "now": count},
            )
            record(connection, at, deed)
        return count

    def _check(self, labels: Sequence[FeatureLabel]) -> None:
        seen: set[tuple[int, str]] = set()
        for one in labels:
            if not 0 <= one.feature <= _MOST:
                raise BadRecord("feature", f"{one.feature} is not the number of a feature")
            checked_text("source", one.source, self.limits.text_bytes)
            if one.label:
                checked_text("label", one.label, self.limits.text_bytes)
            if (one.feature, one.source) in seen:
                raise BadRecord("labels", f"feature {one.feature} has two of {one.source!r}")
            seen.add((one.feature, one.source))

    def _upsert(self) -> Any:
        fresh = (sqlite if self.index.is_sqlite else postgresql).insert(feature_labels)
        kept = ("label", "folded", "changed_at", "changed_by")
        return fresh.on_conflict_do_update(
            index_elements=["tenant", "sae", "feature", "source"],
            set_={k: fresh.excluded[k] for k in kept},
        )

    def of(
        self, tenant: str, sae: str, features: Sequence[int]
    ) -> dict[int, tuple[FeatureLabel, ...]]:
        """The labels of these features; features without one are left out."""
        found: dict[int, tuple[FeatureLabel, ...]] = {}
        with self.index.reading() as connection:
            for batch in batches(sorted(set(features)), _AT_ONCE):
                query = _seen_by(tenant, sae).where(feature_labels.c.feature.in_(batch))
                for row in connection.execute(query):
                    found[row.feature] = (*found.get(row.feature, ()), _as_label(row))
        return found

    def search(
        self,
        tenant: str,
        sae: str,
        texts: Sequence[str],
        limit: int = 100,
        after: str | int | None = None,
    ) -> Page[FeatureLabel]:
        """Labels that contain one of the texts, whatever the case, in the order of the features.

        Raises:
            BadPage: The limit or the cursor is not one.
        """
        checked_limit(limit, self.limits.page)
        column = feature_labels.c.folded
        has = [column.contains(folded(text), autoescape=True) for text in texts]
        query = _seen_by(tenant, sae).where(sa.or_(sa.false(), *has))
        if (number := number_cursor(after)) is not None:
            query = query.where(feature_labels.c.feature > number)
        # A feature may have several labels: pages are cut between features, never inside one.
        wanted = query.with_only_columns(feature_labels.c.feature).order_by(None).distinct()
        wanted = wanted.order_by(feature_labels.c.feature).limit(limit + 1)
        with self.index.reading() as connection:
            features = connection.execute(wanted).scalars().all()
            query = query.where(feature_labels.c.feature.in_(features[:limit]))
            found = [_as_label(row) for row in connection.execute(query)] if features else []
        has_more = len(features) > limit
        cursor = str(features[limit - 1]) if has_more else None
        return Page(items=tuple(found), has_more=has_more, next_cursor=cursor)


def folded(text: str) -> str:
    """A text as it is searched: compatible forms and cases are one."""
    return unicodedata.normalize("NFKC", text).casefold()


def _seen_by(tenant: str, sae: str) -> sa.Select[Any]:
    return (
        sa.select(feature_labels)
        .where(feature_labels.c.tenant.in_((tenant, PUBLIC)), feature_labels.c.sae == sae)
        .order_by(
            feature_labels.c.feature, feature_labels.c.tenant != tenant, feature_labels.c.source
        )
    )


def _these(tenant: str, sae: str, one: FeatureLabel) -> sa.Delete:
    return feature_labels.delete().where(
        feature_labels.c.tenant == tenant,
        feature_labels.c.sae == sae,
        feature_labels.c.feature == one.feature,
        feature_labels.c.source == one.source,
    )


def _count(connection: Connection, tenant: str, sae: str) -> int:
    mine = sa.and_(feature_labels.c.tenant == tenant, feature_labels.c.sae == sae)
    query = sa.select(sa.func.count()).select_from(feature_labels).where(mine)
    return connection.execute(query).scalar_one()


def _as_label(row: Any) -> FeatureLabel:
    return FeatureLabel(feature=row.feature, label=row.label, source=row.source)
