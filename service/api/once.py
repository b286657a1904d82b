"""`Idempotency-Key`: a write that is sent twice happens once (IETF draft 07)."""

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response

from service.api.strict import READING, Handler, Strict
from service.errors import BadRequest
from service.workbench import Workbench

_LONGEST_KEY = 255
_KEPT_HEADERS = ("content-type", "location", "etag", "retry-after")


class Once(Strict):
    """A route that honours the header: the first answer is kept a day and given again.

    Only answers below 400 are kept: after a refusal the mended request may use the same key.
    """

    async def serve(self, request: Request, plain: Handler) -> Response:
        """The first answer of this tenant and key, or the answer."""
        key = request.headers.get("idempotency-key")
        if key is None or request.method in READING:
            return await plain(request)
        if not 0 < len(key) <= _LONGEST_KEY:
            raise BadRequest(
                "The Idempotency-Key is empty or too long.",
                remedy=f"Use 1 to {_LONGEST_KEY} characters, such as a UUID.",
                param="Idempotency-Key",
            )
        return await _first_or_again(request, key, plain)


async def _first_or_again(request: Request, key: str, plain: Handler) -> Response:
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
    conditions = [request.headers.get(name, "") for name in ("if-match", "if-none-match")]
    told = f"{request.method} {request.url.path} {' '.join(conditions).strip()}\n"
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
