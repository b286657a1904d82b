"""`/v1/presets`: steering under a name with versions and aliases."""

import asyncio
from typing import Annotated

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import Field

from service.api.answers import Bench, reply
from service.api.edits import Writer
from service.api.named import EXACT, Noun, PathName, routes
from service.limits_language import check_steering
from service.questions import SettleSteering
from service.registry.presets import STEERING
from service.registry.records import Version
from service.resolving import Resolver
from service.schema import Body
from service.schema_language import SteeringBody, SteeringSettings
from service.workbench import Workbench

PRESET = Noun(word="preset", kind=STEERING, content=lambda version: {"steering": version.header})
router = routes(PRESET)


class PresetBody(Body):
    """`PUT /v1/presets/{name}`: what the next version says."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    steering: SteeringSettings
    """As in a request. A concept is looked up now: the version keeps the features it found."""


@router.put("/{name}", status_code=201, dependencies=EXACT)
async def put_preset(
    request: Request, name: PathName, body: PresetBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Keep steering as the name's next version; the same content is the same version."""
    check_steering([body.steering], bench.settings.limits)
    host = bench.host(body.model)
    card = await host.card()
    vectors = await asyncio.to_thread(_by_digest, bench, caller.tenant, body)
    steering = body.steering.model_dump(mode="json", exclude_defaults=True)
    if vectors:
        steering["vectors"] = [{"name": name, "strength": s} for name, s, _ in vectors]
    settled = await host.answer(SettleSteering(tenant=caller.tenant, steering=steering))
    report = dict(settled["report"])
    if vectors:
        report["vectors"] = {name: label for name, _, label in vectors}
    version: Version = await asyncio.to_thread(
        bench.registry.presets.put,
        caller.tenant,
        STEERING,
        name,
        body.model,
        card["fingerprint"],
        settled["steering"],
        actor=caller.name,
        report=report,
    )
    location = {"Location": PRESET.address(version)}
    return reply(request, PRESET.version_body(version), 201, location)


def _by_digest(bench: Workbench, tenant: str, body: PresetBody) -> list[tuple[str, float, str]]:
    """The vectors by what they are now, each with its strength and its name: versions stay."""
    resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
    named = SteeringBody.model_validate(body.steering.model_dump())
    (order,) = resolver.resolve(tenant, body.model, (), [named]).steering
    return [(f"sha256:{v.digest}", v.strength, v.label) for v in order.vectors]
