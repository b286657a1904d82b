"""`/v1/keys` and `/v1/audit`: who may do what, and who did."""

import asyncio
import dataclasses
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse

from service.api.answers import Bench, Page, listed, no_query, reply
from service.api.strict import Strict
from service.auth import Principal, needs
from service.registry.records import ApiKey, AuditRow
from service.schema import KeyBody

router = APIRouter(prefix="/v1", tags=["keys"], route_class=Strict)
Admin = Annotated[Principal, Depends(needs("keys:admin"))]
Auditor = Annotated[Principal, Depends(needs("audit:read"))]
EXACT = [Depends(no_query)]


@router.post("/keys", status_code=201, dependencies=EXACT)
async def create_key(request: Request, body: KeyBody, bench: Bench, caller: Admin) -> JSONResponse:
    """A new key of the caller's tenant; its secret is in this answer and nowhere else."""
    expires = time.time() + 86400 * body.days if body.days else None
    secret, key = await asyncio.to_thread(
        bench.registry.keys.create,
        caller.tenant,
        body.scopes,
        expires,
        body.name,
        actor=caller.name,
    )
    headers = {"Cache-Control": "no-store"}
    return reply(request, {**key_body(key), "secret": secret}, 201, headers)


@router.get("/keys")
async def list_keys(
    request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Admin
) -> JSONResponse:
    """The tenant's keys, without secrets."""
    keys = await asyncio.to_thread(bench.registry.keys.list, caller.tenant, page.limit, page.after)
    return listed(request, keys, key_body)


@router.delete("/keys/{key_id}", dependencies=EXACT)
async def revoke_key(request: Request, key_id: str, bench: Bench, caller: Admin) -> JSONResponse:
    """The key stops working with the next request."""
    key = await asyncio.to_thread(bench.registry.keys.revoke, key_id, caller.name, caller.tenant)
    return reply(request, key_body(key))


@router.get("/audit")
async def read_audit(
    request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Auditor
) -> JSONResponse:
    """Who moved or made what, newest first; each row's digest covers all rows before it."""
    rows = await asyncio.to_thread(bench.registry.audit.list, caller.tenant, page.limit, page.after)
    return listed(request, rows, audit_body)


def key_body(key: ApiKey) -> dict[str, Any]:
    """A key as JSON; never its secret."""
    return {
        "object": "key",
        "id": key.id,
        "name": key.name,
        "tenant": key.tenant,
        "scopes": list(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def audit_body(row: AuditRow) -> dict[str, Any]:
    """An audit row as JSON."""
    return {"object": "audit", **dataclasses.asdict(row)}
