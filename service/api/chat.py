"""`/v1/chat/completions` and `/v1/completions`: language models, edited and steered per request."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service import limits, limits_language, openai_language
from service.api.answers import Bench, no_query, reply, stream, while_connected
from service.api.strict import Strict
from service.auth import Principal, needs
from service.errors import NotOffered, WrongModality
from service.fetching import pictures_of
from service.openai_language import Answer, Asked, ChatShape, CompletionShape
from service.orders import Ended, PictureOrder, Prepared, TextEvent, TextOrder
from service.resolving import Resolver, Wanted
from service.schema_language import ChatBody, CompletionBody, GenerationBody
from service.schema_steering import Entry
from service.workbench import Workbench

router = APIRouter(
    prefix="/v1", tags=["language"], dependencies=[Depends(no_query)], route_class=Strict
)
Caller = Annotated[Principal, Depends(needs("infer"))]


@router.post("/chat/completions")
async def chat(request: Request, body: ChatBody, bench: Bench, caller: Caller) -> Response:
    """Answer a conversation, with the named edits and steering applied to this answer only."""
    limits_language.check_chat(body, bench.settings.limits)
    wanted = await _wanted(body, bench, caller, body.backpatch)
    pictures = await while_connected(request, _pictures(body, bench, wanted))
    order = openai_language.chat_order(body, wanted, _asked(request, bench, caller), pictures)
    return await _answered(request, body, bench, wanted, order, ChatShape())


@router.post("/completions")
async def complete(
    request: Request, body: CompletionBody, bench: Bench, caller: Caller
) -> Response:
    """Go on with texts, with the named edits and steering applied to these continuations only."""
    limits_language.check_completion(body, bench.settings.limits)
    wanted = await _wanted(body, bench, caller)
    order = openai_language.completion_order(body, wanted, _asked(request, bench, caller))
    return await _answered(
        request, body, bench, wanted, order, CompletionShape(), echo=bool(body.echo)
    )


def _asked(request: Request, bench: Workbench, caller: Principal) -> Asked:
    return Asked(
        id=request.state.request_id,
        tenant=caller.tenant,
        seconds=bench.settings.server.request_seconds,
        most=bench.settings.limits.max_tokens,
    )


async def _pictures(body: ChatBody, bench: Workbench, wanted: Wanted) -> tuple[PictureOrder, ...]:
    """The pictures of a conversation, looked at from outside; for a model that reads some."""
    shown = list(openai_language.shown(body))
    if not shown:
        return ()
    card = await bench.host(wanted.model).card()
    if card["modality"] == "text-to-image":
        raise WrongModality(wanted.model, card["modality"], "vision-language")
    if card["modality"] != "vision-language":
        place = shown[0][0].removesuffix(".image_url.url")
        raise NotOffered(place, f"{wanted.model} reads text, no pictures.")
    addresses = [(place, url.url) for place, url in shown]
    return await pictures_of(addresses, bench.settings.limits, bench.settings.remote)


async def _wanted(
    body: GenerationBody, bench: Workbench, caller: Principal, backpatch: Entry | None = None
) -> Wanted:
    """The hosted model, the edits and the steering, within the operator's limits."""
    resolver = Resolver(registry=bench.registry, hosted=list(bench.hosts))
    wanted = await asyncio.to_thread(
        resolver.resolve, caller.tenant, body.model, body.edits, body.steering, backpatch
    )
    limits.check_total(len(wanted.edits), bench.settings.limits)
    limits_language.check_wanted(wanted, bench.settings.limits, compare=body.compare)
    return wanted


async def _answered(  # noqa: PLR0913 - one argument per part of the request
    request: Request,
    body: GenerationBody,
    bench: Workbench,
    wanted: Wanted,
    order: TextOrder,
    shape: ChatShape | CompletionShape,
    *,
    echo: bool = False,
) -> Response:
    host = bench.host(wanted.model)
    card = await host.card()
    events = counted(host.write(order), bench, wanted)

    def begun(first: TextEvent) -> Answer:
        assert isinstance(first, Prepared)  # noqa: S101 - the host's contract
        tiller = openai_language.applied(wanted, first, card, order)
        return Answer(
            shape=shape, model=body.model, order=order, prepared=first, tiller=tiller, echo=echo
        )

    if not body.stream:
        answer, ended = await while_connected(request, _whole(events, begun))
        return reply(request, answer.whole(ended))
    # The first event is awaited here: a refusal at admission is a status, not an event.
    answer = begun(await while_connected(request, _first(events)))
    options = body.stream_options
    return stream(_streamed(answer, events, usage=options is not None and options.include_usage))


async def _first(events: AsyncGenerator[TextEvent, None]) -> TextEvent:
    try:
        return await anext(events)
    except BaseException:  # nobody will read the rest
        await events.aclose()
        raise


async def _whole(
    events: AsyncGenerator[TextEvent, None], begun: Callable[[TextEvent], Answer]
) -> tuple[Answer, list[Ended]]:
    async with aclosing(events):
        answer = begun(await anext(events))
        return answer, [happened async for happened in events if isinstance(happened, Ended)]


async def _streamed(
    answer: Answer, events: AsyncGenerator[TextEvent, None], *, usage: bool
) -> AsyncGenerator[bytes, None]:
    """The answer's chunks; whoever stops reading frees the rows."""
    async with aclosing(events), aclosing(answer.events(events, usage=usage)) as chunks:
        async for chunk in chunks:
            yield chunk


async def counted(
    events: AsyncIterator[TextEvent], bench: Workbench, wanted: Wanted
) -> AsyncGenerator[TextEvent, None]:
    """The events; tokens go into the metrics, and the end frees the rows."""
    numbers = bench.telemetry.tokens
    async with aclosing(events) as rest:  # type: ignore[type-var]
        async for happened in rest:
            if isinstance(happened, Ended):
                steered = str(bool(wanted.steering) and not happened.plain).lower()
                numbers.labels(wanted.model, steered, "written").inc(happened.completion_tokens)
                numbers.labels(wanted.model, steered, "read").inc(happened.prompt_tokens)
            yield happened
