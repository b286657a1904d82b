"""`/v1/variants`: a model and edits under one name, usable as `model` by any OpenAI client."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as PathPart
from fastapi.responses import JSONResponse

from service import limits
from service.api.answers import Bench, Generation, Page, listed, no_query, reply
from service.api.once import Once
from service.auth import Principal, needs
from service.errors import NameTaken
from service.registry.records import Variant
from service.resolving import Resolver, uses_of
from service.schema import NAME, VariantBody

router = APIRouter(prefix="/v1/variants", tags=["variants"], route_class=Once)
EXACT = [Depends(no_query)]
Reader = Annotated[Principal, Depends(needs("edits:read"))]
Promoter = Annotated[Principal, Depends(needs("edits:promote"))]
VariantName = Annotated[str, PathPart(pattern=NAME)]


@router.get("")
async def list_variants(
    request: Request, page: Annotated[Page, Query()], bench: Bench, caller: Reader
) -> JSONResponse:
    """This tenant's variants."""
    bundles = await asyncio.to_thread(
        bench.registry.variants.list, caller.tenant, page.limit, page.after
    )
    return listed(request, bundles, variant_body)


@router.get("/{name}", dependencies=EXACT)
async def show_variant(request: Request, name: str, bench: Bench, caller: Reader) -> JSONResponse:
    """One variant."""
    bundle = await asyncio.to_thread(bench.registry.variants.get, caller.tenant, name)
    return _variant_reply(request, bundle)


@router.put("/{name}", dependencies=EXACT)
async def put_variant(
    request: Request,
    name: VariantName,
    body: VariantBody,
    bench: Bench,
    caller: Promoter,
    if_match: Generation,
) -> JSONResponse:
    """Make or replace a variant. Its edits must exist now; aliases in it are followed later."""
    if name in bench.hosts:
        raise NameTaken(name)
    limits.check_edits(body.edits, bench.settings.limits)
    bench.host(body.model)
    resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
    await asyncio.to_thread(resolver.bundle, caller.tenant, body.model, body.edits)
    bundle = await asyncio.to_thread(
        bench.registry.variants.put,
        caller.tenant,
        name,
        body.model,
        [use.name for use in body.edits],
        actor=caller.name,
        settings={"strengths": [use.strength for use in body.edits]},
        if_match=if_match,
    )
    return _variant_reply(request, bundle)


@router.delete("/{name}", dependencies=EXACT)
async def delete_variant(
    request: Request, name: str, bench: Bench, caller: Promoter, if_match: Generation
) -> JSONResponse:
    """Forget the variant; its edits stay."""
    await asyncio.to_thread(
        bench.registry.variants.delete, caller.tenant, name, caller.name, if_match
    )
    return reply(request, {"object": "variant", "name": name, "deleted": True})


def _variant_reply(request: Request, bundle: Variant) -> JSONResponse:
    return reply(request, variant_body(bundle), headers={"ETag": f'"{bundle.generation}"'})


def variant_body(bundle: Variant) -> dict[str, Any]:
    """A variant as JSON."""
    return {
        "object": "variant",
        "name": bundle.name,
        "model": bundle.model,
        "edits": [use.model_dump() for use in uses_of(bundle)],
        "generation": bundle.generation,
        "changed_at": bundle.changed_at,
        "changed_by": bundle.changed_by,
    }
