"""Presets: small JSON under a versioned name (steering, back-patch), kept like edits.

A preset's file is its own canonical JSON, so its digest is its content, and aliases, variants,
retirement and the audit work for it as they do for an edit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from service.registry.edits import Edits
from service.registry.errors import KindDiffers
from service.registry.grammar import checked_json, checked_limit, paged
from service.registry.records import Edit, Newest, Page, Version
from service.registry.tables import canonical, edits, versions

_TOLD = ("number", "model", "header", "job", "created_at", "created_by")


@dataclass(frozen=True, kw_only=True)
class Presets:
    """`Registry.presets`; `kind` is "steering", "backpatch", ... but never "edit"."""

    edits: Edits

    def put(  # noqa: PLR0913  (a version is that wide)
        self,
        tenant: str,
        kind: str,
        name: str,
        model: str,
        fingerprint: str,
        body: Mapping[str, Any],
        *,
        actor: str,
        report: Mapping[str, Any] | None = None,
    ) -> Version:
        """Keep the body as the name's next version; the same body is the same version.

        Raises:
            BadName, BadRecord, RegistryFull: Outside the grammar or the limits.
            KindDiffers: The name belongs to another kind of thing, or `kind` is "edit".
        """
        if kind == "edit":
            raise KindDiffers(name, kind, "preset")
        checked_json("preset", body, self.edits.limits.header_bytes)
        data = canonical(body).encode()
        return self.edits.register(
            tenant, name, model, fingerprint, data, body, report, actor=actor, kind=kind
        )

    def list(
        self, tenant: str, kind: str, limit: int = 100, after: str | None = None
    ) -> Page[Edit]:
        """The tenant's presets of one kind in alphabetical order.

        Raises:
            BadPage: The limit is not one.
        """
        return self.edits.list(tenant, limit, after, kind=kind)

    def newest(
        self, tenant: str, kind: str, limit: int = 100, after: str | None = None
    ) -> Page[Newest]:
        """The same, each with what its newest version says of itself: the header, not the report.

        Raises:
            BadPage: The limit is not one.
        """
        checked_limit(limit, self.edits.limits.page)
        every = versions.alias()
        last = sa.select(sa.func.max(every.c.number)).where(every.c.edit == edits.c.id)
        query = (
            sa.select(edits.c.name, *(versions.c[name] for name in _TOLD))
            .join(versions, versions.c.edit == edits.c.id)
            .where(edits.c.tenant == tenant, edits.c.kind == kind)
            .where(versions.c.number == last.scalar_subquery())
        )
        if after is not None:
            query = query.where(edits.c.name > after)
        with self.edits.index.reading() as connection:
            rows = connection.execute(query.order_by(edits.c.name).limit(limit + 1)).all()
        found = [Newest(**row._mapping) for row in rows]
        return paged(found, limit, [one.name for one in found])
