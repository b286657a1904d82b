"""`/v1/images/lens`: what a text encoder knows of a prompt, layer by layer."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from service import lens as seen
from service import limits, openai
from service.api.answers import Bench, no_query, reply, stream, while_connected
from service.api.images import Caller, address_of, counted, wanted_by, wants_png
from service.api.strict import Strict
from service.auth import tell
from service.resolving import Wanted
from service.schema import LensBody
from service.workbench import Composed, Drawn, LensOrder, Workbench

router = APIRouter(
    prefix="/v1/images", tags=["images"], dependencies=[Depends(no_query)], route_class=Strict
)


@router.post("/lens")
async def look(request: Request, body: LensBody, bench: Bench, caller: Caller) -> Response:
    """Draw a prompt from each layer of a text encoder; a picture per layer and seed, and a sheet.

    `Accept: image/png` gives the sheet's bytes.
    """
    as_png = wants_png(request, body)
    wanted = await wanted_by(body, bench, caller)
    lens = await bench.host(wanted.model).lens(body.encoder)
    layers = seen.layers_of(body.layers, lens)
    limits.check_sweep(len(layers), body.n, bench.settings.limits)
    image = openai.image_order(
        body, wanted, request.state.request_id, bench.settings.server.request_seconds
    )
    order = seen.lens_order(body, image, lens, layers)
    tell(request, await bench.doorman.count(caller, "images", len(layers) * body.n))
    about = seen.about(lens, order)
    if body.stream:
        return await _streamed(bench, wanted, order, about)
    drawn, tiller = await while_connected(request, _draw(bench, wanted, order, about))
    sheet = await asyncio.to_thread(seen.sheet_of, drawn, order, tiller)
    if as_png:
        # Without what `images` says of each picture: headers are bounded on the way.
        return Response(sheet, media_type="image/png", headers={"X-Tiller": json.dumps(tiller)})
    addresses = None
    if body.response_format == "url":
        pngs = [*(d.png for d in drawn), sheet]
        addresses = [await address_of(request, bench, png) for png in pngs]
    return reply(request, seen.lens_answer(drawn, sheet, tiller, addresses))


async def _draw(
    bench: Workbench, wanted: Wanted, order: LensOrder, about: dict[str, Any]
) -> tuple[list[Drawn], dict[str, Any]]:
    host = bench.host(wanted.model)
    card = await host.card()
    drawn: list[Drawn] = []
    tiller: dict[str, Any] = {}
    async with aclosing(counted(host.look(order), bench, wanted)) as events:
        async for happened in events:
            if isinstance(happened, Composed):
                told = openai.applied(wanted, happened, card, order.image.id)
                tiller = {**told, "lens": about}
            elif isinstance(happened, Drawn):
                drawn.append(happened)
    return sorted(drawn, key=lambda d: d.index), tiller


async def _streamed(
    bench: Workbench, wanted: Wanted, order: LensOrder, about: dict[str, Any]
) -> Response:
    # The first event is awaited here: a refusal at admission is a status, not an event.
    host = bench.host(wanted.model)
    card = await host.card()
    events = host.look(order)
    first = await anext(events)
    assert isinstance(first, Composed)  # noqa: S101 - the host's contract
    tiller = {**openai.applied(wanted, first, card, order.image.id), "lens": about}
    return stream(seen.lens_events(counted(events, bench, wanted), order, tiller))
