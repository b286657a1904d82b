"""API keys: the secret is shown once and kept as its SHA-256 only."""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from service.registry.audit import Deed, record
from service.registry.errors import BadRecord, RegistryFull, UnknownApiKey
from service.registry.grammar import checked_limit, checked_text, paged
from service.registry.index import Index
from service.registry.limits import Limits
from service.registry.records import ApiKey, Page
from service.registry.tables import keys

_SECRET = re.compile(r"sk_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """`Registry.keys`."""

    index: Index
    limits: Limits

    def create(
        self, tenant: str, scopes: Sequence[str], expires: float | None, name: str, *, actor: str
    ) -> tuple[str, ApiKey]:
        """A new key: its secret, which nobody can read again, and its record.

        Args:
            tenant: Whose names its bearer uses.
            scopes: What its bearer may do.
            expires: Seconds since 1970, None for never.
            name: For people.
            actor: Who goes into the audit.

        Raises:
            BadRecord, RegistryFull: Outside the limits.
        """
        for what, text in (("tenant", tenant), ("name", name), ("actor", actor)):
            checked_text(what, text, self.limits.text_bytes)
        checked_text("scopes", " ".join(scopes), self.limits.text_bytes)
        if expires is not None and not math.isfinite(expires):
            raise BadRecord("expires", "it is not a time")
        public = secrets.token_hex(8)
        secret = f"sk_{public}_{secrets.token_urlsafe(32)}"
        with self.index.writing() as connection:
            self._refuse_more(connection, tenant)
            at = self.index.now(connection)
            fresh = keys.insert().values(
                id=f"key_{public}",
                tenant=tenant,
                name=name,
                hash=_hashed(secret),
                scopes=list(scopes),
                created_at=at,
                created_by=actor,
                expires_at=expires,
            )
            row = connection.execute(fresh.returning(keys)).one()
            _tell(connection, at, row, actor, "key.create")
        return secret, _as_key(row)

    def verify(self, secret: str) -> ApiKey | None:
        """The key of a secret; None if it is unknown, expired or revoked."""
        match = _SECRET.fullmatch(secret)
        if match is None:
            return None
        with self.index.reading() as connection:
            at = self.index.now(connection)
            row = connection.execute(
                sa.select(keys).where(keys.c.id == f"key_{match.group(1)}")
            ).first()
        # The public part finds the row; the secret part is compared in constant time.
        if row is None or not hmac.compare_digest(row.hash, _hashed(secret)):
            return None
        return _as_key(row) if _works(row, at) else None

    def revoke(self, key: str, actor: str, tenant: str | None = None) -> ApiKey:
        """Make a key worthless from now on.

        Raises:
            UnknownApiKey: There is none, or it is another tenant's.
        """
        checked_text("actor", actor, self.limits.text_bytes)
        with self.index.writing() as connection:
            row = connection.execute(sa.select(keys).where(keys.c.id == key)).first()
            if row is None or (tenant is not None and row.tenant != tenant):
                raise UnknownApiKey(key)
            if row.revoked_at is None:
                at = self.index.now(connection)
                change = keys.update().where(keys.c.id == key).values(revoked_at=at)
                row = connection.execute(change.returning(keys)).one()
                _tell(connection, at, row, actor, "key.revoke")
            return _as_key(row)

    def list(self, tenant: str | None, limit: int = 100, after: str | None = None) -> Page[ApiKey]:
        """Keys without their secrets, by id; of all tenants if `tenant` is None.

        Raises:
            BadPage: The limit is not one.
        """
        checked_limit(limit, self.limits.page)
        query = sa.select(keys).order_by(keys.c.id).limit(limit + 1)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        if after is not None:
            query = query.where(keys.c.id > after)
        with self.index.reading() as connection:
            found = [_as_key(row) for row in connection.execute(query)]
        return paged(found, limit, [k.id for k in found])

    def any_works(self) -> bool:
        """Whether at least one key opens the service."""
        with self.index.reading() as connection:
            at = self.index.now(connection)
            query = sa.select(keys.c.id).where(
                keys.c.revoked_at.is_(None),
                sa.or_(keys.c.expires_at.is_(None), keys.c.expires_at > at),
            )
            return connection.execute(query.limit(1)).first() is not None

    def _refuse_more(self, connection: Connection, tenant: str) -> None:
        query = sa.select(sa.func.count()).where(
            keys.c.tenant == tenant, keys.c.revoked_at.is_(None)
        )
        if connection.execute(query).scalar_one() >= self.limits.keys:
            raise RegistryFull("API keys", self.limits.keys)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _works(row: Row[Any], at: float) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > at)


def _tell(connection: Connection, at: float, row: Row[Any], actor: str, action: str) -> None:
    detail = {"name": row.name, "scopes": row.scopes}
    deed = Deed(tenant=row.tenant, actor=actor, action=action, subject=row.id, detail=detail)
    record(connection, at, deed)


def _as_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
