"""Routes that read what was sent, all of it and nothing twice."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData

from service.errors import NotOffered, SentTwice

_LISTS = ("replaces",)
"""Form fields that are sent once per item."""
READING = ("GET", "HEAD")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Read(Request):
    """A request whose keys are there once: of two values one would be dropped without a word."""

    async def json(self) -> Any:
        """The body as JSON.

        Raises:
            SentTwice: An object has a key twice.
        """
        if not hasattr(self, "_json"):
            self._json = json.loads(await self.body(), object_pairs_hook=_object)
        return self._json

    async def _get_form(self, **limits: Any) -> FormData:
        form = await super()._get_form(**limits)
        try:
            once_each(key for key, _ in form.multi_items() if key not in _LISTS)
        except SentTwice:
            await form.close()
            raise
        return form


class Strict(APIRoute):
    """A route that refuses what is said twice, and an `Idempotency-Key` that would not hold."""

    def get_route_handler(self) -> Handler:
        """The route's handler behind these checks."""
        plain = super().get_route_handler()

        async def strict(request: Request) -> Response:
            once_each(key for key, _ in request.query_params.multi_items())
            return await self.serve(Read(request.scope, request.receive), plain)

        return strict

    async def serve(self, request: Request, plain: Handler) -> Response:
        """The answer.

        Raises:
            NotOffered: The request shall happen once, which this route cannot promise.
        """
        if "idempotency-key" in request.headers and request.method not in READING:
            raise NotOffered("Idempotency-Key", "answers of this call are not kept.")
        return await plain(request)


def once_each(keys: Iterable[str]) -> None:
    """SentTwice with the first key that occurs more than once."""
    for key, times in Counter(keys).items():
        if times > 1:
            raise SentTwice(key)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) < len(pairs):
        once_each(key for key, _ in pairs)
    return told
