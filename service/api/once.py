"""`Idempotency-Key`: a write that is sent twice happens once (IETF draft 07)."""

import asyncio
import base64
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import BadRequest
from service.workbench import Workbench

_LONGEST_KEY = 255
_KEPT_HEADERS = ("content-type", "location", "etag", "retry-after")


class Once(APIRoute):
    """A route that honours the header: the first answer is kept a day and given again.

    Only answers below 400 are kept: after a refusal the mended request may use the same key.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, run at most once per tenant and key."""
        plain = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get("idempotency-key")
            if key is None or request.method in ("GET", "HEAD"):
                return await plain(request)
            if not 0 < len(key) <= _LONGEST_KEY:
                raise BadRequest(
                    "The Idempotency-Key is empty or too long.",
                    remedy=f"Use 1 to {_LONGEST_KEY} characters, such as a UUID.",
                    param="Idempotency-Key",
                )
            return await _first_or_again(request, key, plain)

        return once


async def _first_or_again(
    request: Request, key: str, plain: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Response:
    bench: Workbench = request.app.state.workbench
    tenant = (await bench.doorman.admit(request)).tenant
    kept = bench.registry.idempotency
    stored = await asyncio.to_thread(kept.begin, tenant, key, await _fingerprint(request))
    if stored is not None:
        return _unpack(stored)
    try:
        response = await plain(request)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(kept.abandon, tenant, key))
        raise
    await asyncio.shield(asyncio.to_thread(kept.finish, tenant, key, _pack(response)))
    return response


async def _fingerprint(request: Request) -> str:
    body = await request.body()
    if request.headers.get("content-type", "").startswith("multipart/"):
        # Each sending draws a new boundary: it is no part of what was sent.
        boundary = request.headers["content-type"].partition("boundary=")[2].strip('"').encode()
        body = body.replace(boundary, b"") if boundary else body
    told = f"{request.method} {request.url.path} {request.headers.get('if-match', '')}\n"
    return hashlib.sha256(told.encode() + body).hexdigest()


def _pack(response: Response) -> dict[str, Any]:
    return {
        "status": response.status_code,
        "headers": {k: response.headers[k] for k in _KEPT_HEADERS if k in response.headers},
        "body": base64.b64encode(bytes(response.body)).decode(),
    }


def _unpack(stored: Mapping[str, Any]) -> Response:
    headers = {**stored["headers"], "Idempotency-Replayed": "true"}
    return Response(base64.b64decode(stored["body"]), stored["status"], headers=headers)
