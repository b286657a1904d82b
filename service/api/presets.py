"""`/v1/presets`: steering, or a plan of back-patching, under a name with versions and aliases."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import Field

from service.api.answers import Bench, reply
from service.api.edits import Writer
from service.api.named import EXACT, Noun, PathName, routes
from service.backpatching import KIND, told_apart
from service.errors import BadRequest
from service.limits_language import check_steering
from service.orders import SteeringOrder
from service.questions import SettleSteering
from service.registry.kinds import STEERING
from service.registry.records import Version
from service.resolving import Resolver
from service.schema import Body
from service.schema_steering import Entry, Features, KeptPlan, KeptSteering, Together
from service.workbench import Workbench
from steerers.errors import BadBackPatch


def _content(version: Version) -> dict[str, Any]:
    """What a version says: what steers, or a plan with what it was found to gain."""
    entry, calibration = told_apart(version.header)
    if entry.get("kind") != KIND:
        return {"steering": entry}
    plan = {key: value for key, value in entry.items() if key != "kind"}
    return {"backpatch": plan, "calibration": calibration}


PRESET = Noun(word="preset", kind=STEERING, content=_content)
router = routes(PRESET)

_SETTLED = {"features", "vectors", "concept", "strength", "sae", "count"}
"""Keys whose meaning may move; a version keeps what they mean when it is made."""


class PresetBody(Body):
    """`PUT /v1/presets/{name}`: what the next version says."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    steering: KeptSteering | None = None
    """As in a request. A concept is looked up now: the version keeps the features it found."""
    backpatch: KeptPlan | None = None
    """As in a request; a preset has this, or `steering`."""

    @property
    def entry(self) -> Entry:
        """What it says, which is a steerer either way.

        Raises:
            BadRequest: Both are given, or neither.
        """
        given = [entry for entry in (self.steering, self.backpatch) if entry is not None]
        if len(given) != 1:
            raise BadRequest(
                "A preset keeps steering, or a plan of back-patching.",
                remedy="Send one of `steering` and `backpatch`.",
                param="backpatch" if given else "steering",
            )
        return given[0]


@router.put("/{name}", status_code=201, dependencies=EXACT)
async def put_preset(
    request: Request, name: PathName, body: PresetBody, bench: Bench, caller: Writer
) -> JSONResponse:
    """Keep what the body says as the name's next version; the same content is the same version.

    A plan of back-patching names its tokens `visual` or `reference`: numbers fit one prompt only.
    """
    check_steering([body.entry], bench.settings.limits)
    _check_positions(body)
    host = bench.host(body.model)
    card = await host.card()
    orders = await asyncio.to_thread(_orders, bench, caller.tenant, body)
    settled = await host.answer(SettleSteering(tenant=caller.tenant, steering=orders))
    steering, report = _kept(body.entry, orders, settled)
    version: Version = await asyncio.to_thread(
        bench.registry.presets.put,
        caller.tenant,
        STEERING,
        name,
        body.model,
        card["fingerprint"],
        steering,
        actor=caller.name,
        report=report,
    )
    location = {"Location": PRESET.address(version)}
    return reply(request, PRESET.version_body(version), 201, location)


def _check_positions(body: PresetBody) -> None:
    """BadBackPatch for a plan that names tokens by number: they are those of one prompt."""
    entry: Any = body.entry
    if getattr(entry, "kind", None) != KIND or isinstance(entry.positions, str):
        return
    place = "steering" if body.backpatch is None else "backpatch"
    raise BadBackPatch(
        "A preset is used with many prompts, and numbers name the tokens of one.",
        f"{place}.positions",
        "Use `visual` or `reference`; send numbers with the request that they belong to.",
    )


def _orders(bench: Workbench, tenant: str, body: PresetBody) -> tuple[SteeringOrder, ...]:
    """The steering with every name resolved, as a request's."""
    resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
    steering = () if body.steering is None else (body.steering,)
    return resolver.resolve(tenant, body.model, (), steering, body.backpatch).steering


def _kept(
    asked: Entry, orders: Sequence[SteeringOrder], settled: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a version says, which never changes: features and digests; and what was measured."""
    steering = asked.model_dump(mode="json", exclude_defaults=True)
    report: dict[str, Any] = {"steering": settled["report"]}
    used = [order for order in orders if order.vector is not None]
    report |= {"vectors": {_digest(o): o.vector.label for o in used if o.vector}} if used else {}
    if not isinstance(asked, Together | Features):
        told = {"vector": _digest(used[0])} if used else {}
        return {"kind": orders[0].method.kind, **steering, **told}, report
    if (concept := getattr(asked, "concept", None)) is not None:
        report["concept"] = concept
    steering = {k: v for k, v in steering.items() if k not in _SETTLED}
    if settled["features"]:
        steering["features"] = settled["features"]
    if used:
        steering["vectors"] = [
            {"name": _digest(order), "strength": order.method.strength} for order in used
        ]
    return steering, report


def _digest(order: SteeringOrder) -> str:
    assert order.vector is not None  # noqa: S101 - asked of those only
    return f"sha256:{order.vector.digest}"
