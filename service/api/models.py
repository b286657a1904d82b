"""`/v1/models`: what is hosted, and variants beside it."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from models.errors import Refusal
from service.api.answers import Bench, no_query, reply
from service.api.strict import Strict
from service.auth import Principal, needs
from service.orders import SteeringOrder
from service.registry.records import Variant
from service.resolving import Resolver
from service.workbench import Workbench

router = APIRouter(
    prefix="/v1/models", tags=["models"], dependencies=[Depends(no_query)], route_class=Strict
)
Caller = Annotated[Principal, Depends(needs("infer"))]


@router.get("")
async def list_models(request: Request, bench: Bench, caller: Caller) -> JSONResponse:
    """Hosted models and this tenant's variants."""
    data = [await hosted_card(bench, name) for name in bench.hosts]
    bundles = await asyncio.to_thread(bench.registry.variants.list, caller.tenant, 1000)
    data += [variant_card(bundle) for bundle in bundles.items]
    return reply(request, {"object": "list", "data": data})


@router.get("/{name:path}")
async def show_model(request: Request, name: str, bench: Bench, caller: Caller) -> JSONResponse:
    """One model: family, fingerprint, sites, methods that apply. Also `base+edit@alias`."""
    if name in bench.hosts:
        return reply(request, await hosted_card(bench, name))
    resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
    wanted = await asyncio.to_thread(resolver.resolve, caller.tenant, name, ())
    base = await hosted_card(bench, wanted.model)
    kind = "variant" if wanted.variant else "composed"
    edits = [e.as_dict() for e in wanted.edits]
    told = {"kind": kind, "base": wanted.model, "edits": edits, "steering": named(wanted.steering)}
    return reply(request, {**base, "id": name, **told})


def named(steering: Sequence[SteeringOrder]) -> list[dict[str, Any]]:
    """The presets and vectors behind a model's name."""
    came = {s.preset.digest: s.preset for s in steering if s.preset is not None}
    presets: list[dict[str, Any]] = [{"preset": preset.as_dict()} for preset in came.values()]
    return presets + [
        {"vector": s.vector.label, "digest": s.vector.digest, "strength": s.method.strength}
        for s in steering
        if s.preset is None and s.vector is not None
    ]


async def hosted_card(bench: Workbench, name: str) -> dict[str, Any]:
    """What a host tells of its model; while it loads, that."""
    card: dict[str, Any] = {"id": name, "object": "model", "owned_by": "tiller", "kind": "model"}
    try:
        told = await bench.hosts[name].card()
    except Refusal as refusal:
        return {**card, "created": 0, "state": refusal.code}
    return {**card, **told, "state": "ready"}


def variant_card(bundle: Variant) -> dict[str, Any]:
    """A variant as a model."""
    return {
        "id": bundle.name,
        "object": "model",
        "created": int(bundle.changed_at),
        "owned_by": "tiller",
        "kind": "variant",
        "base": bundle.model,
        "edits": list(bundle.edits),
    }
