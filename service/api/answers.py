"""How every route answers: JSON with a `tiller` object, lists with a cursor; events."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from service.errors import BadRequest, ClientLeft, UnknownKey
from service.openai import SSE_HEADERS, kept_alive
from service.registry import records
from service.registry.records import Expected
from service.workbench import Workbench

_NUMBER = re.compile(r"[0-9]{1,18}")
T = TypeVar("T")


def bench_of(request: Request) -> Workbench:
    """The workbench of the application that serves this request."""
    return request.app.state.workbench


Bench = Annotated[Workbench, Depends(bench_of)]


class Page(BaseModel):
    """`?limit=&after=`."""

    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    after: str | None = None


def no_query(request: Request) -> None:
    """A dependency for routes without a query.

    Raises:
        UnknownKey: There is one.
    """
    for key in request.query_params:
        raise UnknownKey(key)


def reply(
    request: Request,
    body: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The body as JSON with its `tiller` object."""
    told = {"request_id": request.state.request_id, "version": version("tiller")}
    tiller = {**told, **body.get("tiller", {})}
    return JSONResponse({**body, "tiller": tiller}, status, headers=headers)


def listed(
    request: Request, page: records.Page[T], render: Callable[[T], Mapping[str, Any]]
) -> JSONResponse:
    """A page of a list; `after=next_cursor` asks for the next."""
    body = {
        "object": "list",
        "data": [render(item) for item in page.items],
        "has_more": page.has_more,
        "next_cursor": page.next_cursor,
    }
    return reply(request, body)


def stream(events: AsyncGenerator[bytes, None]) -> StreamingResponse:
    """Server-sent events with heartbeats; a client that leaves ends them."""
    return StreamingResponse(
        kept_alive(events), media_type="text/event-stream", headers=dict(SSE_HEADERS)
    )


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, which is cancelled when the client leaves.

    Raises:
        ClientLeft: Nobody reads the answer; the log does.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=0.1))[0]:
            if await request.is_disconnected():
                raise ClientLeft
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def expected(
    if_match: Annotated[str | None, Header(alias="If-Match")] = None,
    if_none_match: Annotated[str | None, Header(alias="If-None-Match")] = None,
) -> Expected:
    """The generation on which a change depends; None where nothing is asked.

    `If-Match: *` is "any, but it is there", `If-None-Match: *` is "it is not there", which is 0.

    Raises:
        BadRequest: Neither of these, nor one of our ETags.
    """
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise BadRequest(
                "If-None-Match can only be *, and alone.",
                remedy="Send If-None-Match: * to make what is not there, If-Match to change.",
                param="If-None-Match",
            )
        return 0
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return "*"
    text = if_match.strip().removeprefix("W/").strip('"')
    if not _NUMBER.fullmatch(text):
        raise BadRequest(
            f"If-Match {if_match!r} is not an ETag of ours.",
            remedy="Send the ETag that GET gave.",
            param="If-Match",
        )
    return int(text)


Generation = Annotated[Expected, Depends(expected)]
