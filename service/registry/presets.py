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
from service.registry.grammar import checked_json, checked_limit, number_cursor, paged
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
        self,
        tenant: str,
        kind: str,
        limit: int = 100,
        after: str | None = None,
        *,
        model: str | None = None,
        told: str | None = None,
    ) -> Page[Newest]:
        """Each with what its newest version says of itself, the newest first; without reports.

        Args:
            tenant: Whose.
            kind: Of names.
            limit: Names of a page.
            after: The cursor of the page before.
            model: Only those of that model.
            told: Only those whose header says that its `kind` is so.

        Raises:
            BadPage: The limit or the cursor is not one.
        """
        checked_limit(limit, self.edits.limits.page)
        every = versions.alias()
        last = sa.select(sa.func.max(every.c.number)).where(every.c.edit == edits.c.id)
        query = (
            sa.select(versions.c.id, edits.c.name, *(versions.c[name] for name in _TOLD))
            .join(versions, versions.c.edit == edits.c.id)
            .where(edits.c.tenant == tenant, edits.c.kind == kind)
            .where(versions.c.number == last.scalar_subquery())
        )
        if (last_seen := number_cursor(after)) is not None:
            query = query.where(versions.c.id < last_seen)
        if model is not None:
            query = query.where(versions.c.model == model)
        if told is not None:
            text = sa.type_coerce(versions.c.header, sa.Text)
            query = query.where(text.contains(f'"kind":{canonical(told)}', autoescape=True))
        with self.edits.index.reading() as connection:
            rows = connection.execute(query.order_by(versions.c.id.desc()).limit(limit + 1)).all()
        found = [Newest(**{name: getattr(row, name) for name in ("name", *_TOLD)}) for row in rows]
        return paged(found, limit, [str(row.id) for row in rows])
