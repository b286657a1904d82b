"""`/v1/keys` and `/v1/audit`: who may do what, and who did."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from service.api.answers import Bench, Page, listed, no_query, reply
from service.auth import Principal, needs
from service.errors import NotOffered
from service.schema import KeyBody

router = APIRouter(prefix="/v1", tags=["keys"])
Admin = Annotated[Principal, Depends(needs("keys:admin"))]
Auditor = Annotated[Principal, Depends(needs("audit:read"))]
EXACT = [Depends(no_query)]


@router.post("/keys", status_code=201, dependencies=EXACT)
async def create_key(request: Request, body: KeyBody, bench: Bench, caller: Admin) -> JSONResponse:
    """A new key; its secret is in this answer and nowhere else."""
    if "idempotency-key" in request.headers:
        raise NotOffered("Idempotency-Key", "a kept answer would keep the key's secret.")
    expires = time.time() + 86400 * body.days if body.days else None
    secret, key = await asyncio.to_thread(
        bench.registry.keys.create, body.tenant, body.scopes, expires, body.name
    )
    headers = {"Cache-Control": "no-store"}
    return reply(request, {**key_body(key), "secret": secret}, 201, headers)


@router.get("/keys", dependencies=EXACT)
async def list_keys(request: Request, bench: Bench, caller: Admin) -> JSONResponse:
    """All keys, without secrets."""
    keys = await asyncio.to_thread(bench.registry.keys.list)
    return reply(request, {"object": "list", "data": [key_body(key) for key in keys]})


@router.delete("/keys/{key_id}", dependencies=EXACT)
async def revoke_key(request: Request, key_id: str, bench: Bench, caller: Admin) -> JSONResponse:
    """The key stops working with the next request."""
    await asyncio.to_thread(bench.registry.keys.revoke, key_id)
    return reply(request, {"object": "key", "id": key_id, "revoked": True})


@router.get("/audit")
async def read_audit(
    request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Auditor
) -> JSONResponse:
    """Who moved or made what, oldest first; each row carries the hash of the one before."""
    after = int(page.after) if page.after and page.after.isdecimal() else 0
    rows = await asyncio.to_thread(bench.registry.audit.list, caller.tenant, page.limit + 1, after)
    return listed(request, [audit_body(row) for row in rows], page.limit, "seq")


def key_body(key: Any) -> dict[str, Any]:
    """A key as JSON; never its secret."""
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": list(key.scopes),
        "expires": key.expires,
        "created_at": key.created_at,
        "revoked": key.revoked,
    }


def audit_body(row: Any) -> dict[str, Any]:
    """An audit row as JSON."""
    return dict(row)
