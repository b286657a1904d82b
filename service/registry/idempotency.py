"""Idempotency-Key: a write that is sent twice happens once, and is answered twice.

Source: the IETF's draft 07 of the Idempotency-Key header.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection, Row

from service.registry.errors import BodyDiffers, StillInProgress
from service.registry.grammar import checked_json, checked_text
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import Json
from service.registry.tables import claims


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """`Registry.idempotency`."""

    index: Index
    limits: Limits

    def begin(self, tenant: str, key: str, body_hash: str) -> Json | None:
        """None: the caller is the first and must `finish` or `abandon`; else the stored response.

        A claim whose request was lost (`Limits.claim_seconds`) is given to the next caller.

        Raises:
            StillInProgress: The first request is not answered yet.
            BodyDiffers: The key was used for another body.
            BadRecord: The key is outside the limits.
        """
        checked_text("Idempotency-Key", key, self.limits.text_bytes)
        checked_text("body_hash", body_hash, self.limits.text_bytes)
        with self.index.writing() as connection:
            at = self.index.now(connection)
            connection.execute(claims.delete().where(claims.c.expires_at <= at))
            row = _row(connection, tenant, key)
            if row is not None:
                if row.body_hash != body_hash:
                    raise BodyDiffers(key)
                if row.response is None:
                    raise StillInProgress(key)
                return row.response
            connection.execute(
                claims.insert().values(
                    tenant=tenant,
                    key=key,
                    body_hash=body_hash,
                    begun_at=at,
                    expires_at=at + self.limits.claim_seconds,
                )
            )
            return None

    def finish(self, tenant: str, key: str, response: Mapping[str, Any]) -> None:
        """Keep the answer for everybody who sends the same again within a day.

        Raises:
            BadRecord: The response is outside the limits.
        """
        checked_json("response", response, self.limits.response_bytes)
        with self.index.writing() as connection:
            expires = self.index.now(connection) + self.limits.idempotency_seconds
            connection.execute(
                claims.update()
                .where(_is(tenant, key))
                .values(response=response, expires_at=expires)
            )

    def abandon(self, tenant: str, key: str) -> None:
        """Forget a claim whose request failed, so that it can be tried again."""
        with self.index.writing() as connection:
            connection.execute(claims.delete().where(_is(tenant, key), claims.c.response.is_(None)))


def _is(tenant: str, key: str) -> ColumnElement[bool]:
    return sa.and_(claims.c.tenant == tenant, claims.c.key == key)


def _row(connection: Connection, tenant: str, key: str) -> Row[Any] | None:
    return connection.execute(sa.select(claims).where(_is(tenant, key))).first()
