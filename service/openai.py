"""OpenAI's shapes <-> ours, and server-sent events."""

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from models.errors import Refusal
from service.limits import size_of
from service.orders import EditOrder
from service.problems import openai_error
from service.resolving import Wanted
from service.schema import SAFE_INTEGER, ImageBody
from service.workbench import Composed, Drawn, HostEvent, ImageOrder, StepDone

HEARTBEAT_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"
SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def image_order(body: ImageBody, wanted: Wanted, request_id: str, seconds: float) -> ImageOrder:
    """The request as a host understands it: digests instead of names, one seed per picture."""
    height, width = size_of(body.size)
    first = secrets.randbelow(2**32) if body.seed is None else body.seed
    return ImageOrder(
        id=request_id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        seeds=tuple((first + i) % (SAFE_INTEGER + 1) for i in range(body.n)),
        steps=body.steps,
        guidance_scale=body.guidance_scale,
        sampler=body.sampler,
        height=height,
        width=width,
        edits=tuple(
            EditOrder(digest=e.digest, strength=e.strength, label=f"{e.name}@{e.version}")
            for e in wanted.edits
        ),
        negative_edits=body.negative_edits,
        previews=body.partial_images or 0,
        steps_told=bool(body.stream),
        seconds=seconds,
    )


def applied(
    wanted: Wanted, composed: Composed, card: Mapping[str, Any], request_id: str
) -> dict[str, Any]:
    """The `tiller` object: what was applied, to which weights."""
    return {
        "model": wanted.model,
        "variant": wanted.variant,
        "fingerprint": card["fingerprint"],
        "pipeline": card["pipeline"],
        "mode": card["mode"],
        "edits": [e.as_dict() for e in wanted.edits],
        "patch": composed.patch,
        "exact": composed.exact,
        "vif": composed.vif,
        "strain": composed.strain,
        "warnings": list(composed.warnings),
        "request_id": request_id,
    }


def images_answer(
    drawn: list[Drawn], tiller: dict[str, Any], addresses: list[str] | None
) -> dict[str, Any]:
    """OpenAI's `ImagesResponse`; `addresses` where pictures were asked for as urls."""
    drawn = sorted(drawn, key=lambda d: d.index)
    if addresses is None:
        data = [{"b64_json": base64.b64encode(d.png).decode()} for d in drawn]
    else:
        data = [{"url": address} for address in addresses]
    facts = drawn[0].facts
    return {
        "created": int(time.time()),
        "data": data,
        "output_format": "png",
        "size": f"{facts['picture_width']}x{facts['picture_height']}",
        "system_fingerprint": system_fingerprint(tiller),
        "tiller": {**tiller, "images": [dict(d.facts) for d in drawn]},
    }


def system_fingerprint(tiller: Mapping[str, Any]) -> str:
    """Weights and patch as one short name: equal ones can give equal pictures."""
    both = f"{tiller['fingerprint']}\n{tiller['patch']}"
    return f"tiller_{hashlib.sha256(both.encode()).hexdigest()[:16]}"


async def image_events(
    events: AsyncIterator[HostEvent], tiller: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """A drawing as server-sent events: OpenAI's partial and completed pictures, and our steps."""
    yield event("tiller.applied", {"tiller": tiller})
    try:
        async for happened in events:
            match happened:
                case StepDone():
                    for made in step_events(happened):
                        yield made
                case Drawn():
                    yield event("image_generation.completed", picture_event(happened, tiller))
                case Composed():
                    pass  # told as `tiller.applied`
    except Refusal as refusal:
        yield sse(openai_error(refusal))
    yield DONE


def step_events(step: StepDone, place: Mapping[str, int] | None = None) -> list[bytes]:
    """A step, and its preview if there is one; `place` says more of the row than its index."""
    made = {"index": step.index, **(place or {}), "done": step.done, "total": step.total}
    told = [event("tiller.step", made)]
    if step.preview is not None:
        partial = {
            "b64_json": base64.b64encode(step.preview).decode(),
            "partial_image_index": step.done,
            "output_format": "png",
            "created_at": int(time.time()),
            "index": step.index,
            **(place or {}),
        }
        told.append(event("image_generation.partial_image", partial))
    return told


def picture_event(drawn: Drawn, tiller: dict[str, Any]) -> dict[str, Any]:
    """A finished picture with all that was applied to it."""
    facts = drawn.facts
    return {
        "b64_json": base64.b64encode(drawn.png).decode(),
        "created_at": int(time.time()),
        "output_format": "png",
        "size": f"{facts['picture_width']}x{facts['picture_height']}",
        "index": drawn.index,
        "tiller": {**tiller, "images": [dict(facts)]},
    }


def event(kind: str, data: Mapping[str, Any]) -> bytes:
    """One named event; its type stands in the data too, as OpenAI's clients read it there."""
    return f"event: {kind}\n".encode() + sse({"type": kind, **data})


def sse(data: Mapping[str, Any]) -> bytes:
    """One unnamed event."""
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


async def kept_alive(
    events: AsyncGenerator[bytes, None], seconds: float = HEARTBEAT_SECONDS
) -> AsyncGenerator[bytes, None]:
    """The events, and a comment whenever nothing was said for so long."""
    async with aclosing(events):
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=seconds)
                if not done:
                    yield b": still here\n\n"
                    continue
                if (chunk := coming.result()) is None:
                    return
                yield chunk
                coming = asyncio.ensure_future(anext(events, None))
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
