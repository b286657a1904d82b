"""`/v1/images`: drawing."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from service import limits, openai
from service.api.answers import Bench, no_query, reply, stream, while_connected
from service.api.strict import Strict
from service.auth import Principal, needs, tell
from service.errors import BadRequest, MoreThanOnePicture, NotOffered
from service.resolving import Resolver, Wanted
from service.schema import ImageBody
from service.workbench import Composed, Drawn, HostEvent, ImageOrder, Workbench

router = APIRouter(
    prefix="/v1/images", tags=["images"], dependencies=[Depends(no_query)], route_class=Strict
)
Caller = Annotated[Principal, Depends(needs("infer"))]


@router.post("/generations")
async def generate(request: Request, body: ImageBody, bench: Bench, caller: Caller) -> Response:
    """Draw pictures of a prompt, by the hosted model with the named edits applied."""
    as_png = wants_png(request, body)
    if as_png and body.n > 1:
        raise MoreThanOnePicture(body.n)
    wanted = await wanted_by(body, bench, caller)
    order = openai.image_order(
        body, wanted, request.state.request_id, bench.settings.server.request_seconds
    )
    tell(request, await bench.doorman.count(caller, "images", body.n))
    if body.stream:
        return await _streamed(bench, wanted, order)
    drawn, tiller = await while_connected(request, _draw(bench, wanted, order))
    if as_png:
        facts = {**tiller, "images": [dict(d.facts) for d in drawn]}
        return Response(
            drawn[0].png, media_type="image/png", headers={"X-Tiller": json.dumps(facts)}
        )
    addresses = None
    if body.response_format == "url":
        addresses = [await address_of(request, bench, d.png) for d in drawn]
    return reply(request, openai.images_answer(drawn, tiller, addresses))


@router.get("/files/{name}.png")
async def read_picture(name: str, bench: Bench) -> Response:
    """A picture that was asked for as a url: no key is needed, its name is the secret."""
    png = await asyncio.to_thread(bench.pictures.read, name)
    return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


async def wanted_by(body: ImageBody, bench: Workbench, caller: Principal) -> Wanted:
    """The hosted model and the edits of a request that is within the operator's limits."""
    limits.check_image(body, bench.settings.limits)
    resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
    wanted = await asyncio.to_thread(resolver.resolve, caller.tenant, body.model, body.edits)
    limits.check_total(len(wanted.edits), bench.settings.limits)
    if wanted.steering:
        raise NotOffered("model", "steering presets and vectors belong to language models.")
    return wanted


async def _draw(
    bench: Workbench, wanted: Wanted, order: ImageOrder
) -> tuple[list[Drawn], dict[str, Any]]:
    host = bench.host(wanted.model)
    card = await host.card()
    drawn: list[Drawn] = []
    tiller: dict[str, Any] = {}
    async with aclosing(host.draw(order)) as events:  # type: ignore[type-var]
        async for happened in counted(events, bench, wanted):
            if isinstance(happened, Composed):
                tiller = openai.applied(wanted, happened, card, order.id)
            elif isinstance(happened, Drawn):
                drawn.append(happened)
    return sorted(drawn, key=lambda d: d.index), tiller


async def _streamed(bench: Workbench, wanted: Wanted, order: ImageOrder) -> Response:
    # The first event is awaited here: a refusal at admission is a status, not an event.
    host = bench.host(wanted.model)
    card = await host.card()
    events = host.draw(order)
    first = await anext(events)
    assert isinstance(first, Composed)  # noqa: S101 - the host's contract
    tiller = openai.applied(wanted, first, card, order.id)
    return stream(openai.image_events(counted(events, bench, wanted), tiller))


async def counted(
    events: AsyncIterator[HostEvent], bench: Workbench, wanted: Wanted
) -> AsyncGenerator[HostEvent, None]:
    """The events; finished pictures go into the metrics, and the end frees the rows."""
    edited = str(bool(wanted.edits)).lower()
    async with aclosing(events) as rest:  # type: ignore[type-var]
        async for happened in rest:
            if isinstance(happened, Drawn):
                bench.telemetry.images.labels(wanted.model, edited).inc()
            yield happened


def wants_png(request: Request, body: ImageBody) -> bool:
    """Whether the answer is to be the bytes of one picture.

    Raises:
        BadRequest: Another way to receive it was asked for as well.
    """
    if "image/png" not in request.headers.get("accept", ""):
        return False
    if body.stream or body.response_format == "url":
        raise BadRequest(
            "`Accept: image/png` goes with neither `stream` nor `response_format: url`.",
            remedy="Choose one way to receive the picture.",
            param="stream" if body.stream else "response_format",
        )
    return True


async def address_of(request: Request, bench: Workbench, png: bytes) -> str:
    """Keep a picture; where it can be fetched."""
    name = await asyncio.to_thread(bench.pictures.keep, png)
    base = bench.settings.server.public_url or str(request.base_url)
    return f"{base.rstrip('/')}/v1/images/files/{name}.png"
