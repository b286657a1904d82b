"""`/v1/variants`: a model and edits under one name, usable as `model` by any OpenAI client."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathPart
from fastapi.responses import JSONResponse

from service import limits
from service.api.answers import Bench, no_query, reply
from service.api.once import Once
from service.auth import Principal, needs
from service.errors import NameTaken
from service.resolving import Resolver
from service.schema import NAME, VariantBody

router = APIRouter(
    prefix="/v1/variants", tags=["variants"], route_class=Once, dependencies=[Depends(no_query)]
)
Reader = Annotated[Principal, Depends(needs("edits:read"))]
Promoter = Annotated[Principal, Depends(needs("edits:promote"))]
VariantName = Annotated[str, PathPart(pattern=NAME)]


@router.get("")
async def list_variants(request: Request, bench: Bench, caller: Reader) -> JSONResponse:
    """This tenant's variants."""
    bundles = await asyncio.to_thread(bench.registry.variants.list, caller.tenant)
    return reply(request, {"object": "list", "data": [variant_body(b) for b in bundles]})


@router.get("/{name}")
async def show_variant(request: Request, name: str, bench: Bench, caller: Reader) -> JSONResponse:
    """One variant."""
    bundle = await asyncio.to_thread(bench.registry.variants.get, caller.tenant, name)
    return reply(request, variant_body(bundle))


@router.put("/{name}")
async def put_variant(
    request: Request, name: VariantName, body: VariantBody, bench: Bench, caller: Promoter
) -> JSONResponse:
    """Make or replace a variant. Its edits must exist now; aliases in it are followed later."""
    if name in bench.hosts:
        raise NameTaken(name)
    limits.check_edits(body.edits, bench.settings.limits)
    bench.host(body.model)
    resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
    await asyncio.to_thread(resolver.resolve, caller.tenant, body.model, body.edits)
    uses = [use.model_dump() for use in body.edits]
    bundle = await asyncio.to_thread(
        bench.registry.variants.put, caller.tenant, name, body.model, uses, actor=caller.name
    )
    return reply(request, variant_body(bundle))


@router.delete("/{name}")
async def delete_variant(
    request: Request, name: str, bench: Bench, caller: Promoter
) -> JSONResponse:
    """Forget the variant; its edits stay."""
    await asyncio.to_thread(bench.registry.variants.delete, caller.tenant, name, caller.name)
    return reply(request, {"object": "variant", "name": name, "deleted": True})


def variant_body(bundle: Any) -> dict[str, Any]:
    """A variant as JSON."""
    return {
        "object": "variant",
        "name": bundle.name,
        "model": bundle.model,
        "edits": bundle.edits,
        "created_at": bundle.created_at,
    }
