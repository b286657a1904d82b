"""OpenAI's chat and completions <-> our orders and events; both as one answer and as a stream."""

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.errors import Refusal
from service.openai import DONE, sse, system_fingerprint
from service.orders import (
    EditOrder,
    Ended,
    Likely,
    PictureOrder,
    Prepared,
    SamplingOrder,
    TextEvent,
    TextOrder,
    TokenTold,
    Wrote,
)
from service.problems import openai_error
from service.resolving import Wanted
from service.schema_language import ChatBody, CompletionBody, GenerationBody, ImageUrl, Message

Json = dict[str, Any]
COMPLETION_TOKENS = 16
"""Of a completion that names no number: OpenAI's default, which its clients rely on."""
_SAMPLING = tuple(SamplingOrder.__dataclass_fields__)
_DETAIL = "`detail` changes nothing: a model looks as closely as its own processor does."
_PLAIN = {"tiller": {"plain": True}}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who asks, and within which bounds.

    Attributes:
        id: Of the request.
        seconds: How long it may take.
        most: Tokens of a choice that names no number.
    """

    id: str
    tenant: str
    seconds: float
    most: int


def chat_order(
    body: ChatBody, wanted: Wanted, asked: Asked, pictures: Sequence[PictureOrder] = ()
) -> TextOrder:
    """A conversation as a host understands it; its pictures in the order of their parts."""
    top = (body.top_logprobs or 0) if body.logprobs else None
    return TextOrder(
        messages=tuple(_said(message) for message in body.messages),
        pictures=tuple(pictures),
        notes=(_DETAIL,) if any(url.detail != "auto" for _, url in shown(body)) else (),
        logprobs=top,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        **_shared(body, wanted, asked),
    )


def completion_order(body: CompletionBody, wanted: Wanted, asked: Asked) -> TextOrder:
    """Texts that go on, as a host understands them."""
    return TextOrder(
        prompts=tuple(p if isinstance(p, str) else tuple(p) for p in body.prompt),
        logprobs=body.logprobs,
        max_tokens=body.max_tokens or COMPLETION_TOKENS,
        **_shared(body, wanted, asked, len(body.prompt)),
    )


def _shared(body: GenerationBody, wanted: Wanted, asked: Asked, prompts: int = 1) -> Json:
    stated = body.model_dump(include=set(_SAMPLING), exclude_none=True)
    return {
        "id": asked.id,
        "tenant": asked.tenant,
        "n": body.n or 1,
        "seeds": tuple(secrets.randbelow(2**32) for _ in range(prompts))
        if body.seed is None
        else (body.seed,),
        "sampling": SamplingOrder(**stated),
        "most": asked.most,
        "stop": tuple(body.stop or ()),
        "edits": tuple(
            EditOrder(digest=e.digest, strength=e.strength, label=f"{e.name}@{e.version}")
            for e in wanted.edits
        ),
        "steering": wanted.steering,
        "unverified": body.unverified == "allow",
        "compare": body.compare,
        "streamed": bool(body.stream),
        "seconds": asked.seconds,
    }


def shown(body: ChatBody) -> Iterator[tuple[str, ImageUrl]]:
    """The pictures of a conversation, each with its key."""
    for i, message in enumerate(body.messages):
        for j, part in enumerate(message.content or ()):
            if part.image_url is not None:
                yield f"messages[{i}].content[{j}].image_url.url", part.image_url


def _said(message: Message) -> dict[str, Any]:
    """As chat templates read it: three roles, and one text per message, or parts with pictures."""
    role = "system" if message.role == "developer" else message.role
    parts = message.content or ()
    if all(part.image_url is None for part in parts):
        return {"role": role, "content": "".join(part.text or "" for part in parts)}
    content = [
        {"type": "text", "text": part.text} if part.image_url is None else {"type": "image"}
        for part in parts
    ]
    return {"role": role, "content": content}


def applied(wanted: Wanted, prepared: Prepared, card: Mapping[str, Any], order: TextOrder) -> Json:
    """The `tiller` object as far as it is known before the first token."""
    asked = {"unverified": [dict(u) for u in prepared.unverified]} if order.unverified else {}
    return {
        "model": wanted.model,
        "variant": wanted.variant,
        "fingerprint": card["fingerprint"],
        "engine": dict(prepared.engine),
        "edits": [e.as_dict() for e in wanted.edits],
        "steering": [dict(report) for report in prepared.steering],
        "steering_sum": [dict(site) for site in prepared.whole],
        "backpatch": _one_or_several(prepared.backpatch),
        "patch": prepared.patch,
        "exact": prepared.exact,
        "vif": prepared.vif,
        "strain": prepared.strain,
        "seed": order.seeds[0] if len(order.seeds) == 1 else list(order.seeds),
        "warnings": [*order.notes, *prepared.warnings],
        "request_id": order.id,
        **asked,
    }


def _one_or_several(reports: Sequence[Mapping[str, Any]]) -> Json | list[Json] | None:
    """A plan's report; of prompts in which it comes to different things, one each."""
    told = [dict(report) for report in reports]
    return told if len(told) > 1 else next(iter(told), None)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request's answer while it is written: what all of its shapes share.

    Attributes:
        shape: Chat or completion.
        model: As the request named it.
        order: What was asked of the host.
        prepared: What the rows carry.
        tiller: What `applied` gave.
        echo: Whether a completion begins with its prompt.
    """

    shape: "ChatShape | CompletionShape"
    model: str
    order: TextOrder
    prepared: Prepared
    tiller: Json
    echo: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def rows(self) -> int:
        """How many choices there are, plain twins not counted."""
        return self.order.n * len(self.prepared.prompts)

    def head(self, index: int) -> str:
        """What stands in front of a choice's own text."""
        return self.prepared.prompts[index // self.order.n] if self.echo else ""

    def envelope(self, kind: str) -> Json:
        """What every answer and every chunk says of itself."""
        return {
            "id": f"{self.shape.prefix}-{self.order.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": system_fingerprint(self.tiller),
        }

    def whole(self, ended: Sequence[Ended]) -> Json:
        """The answer in one piece."""
        own, twins = _parted(ended)
        return {
            **self.envelope(self.shape.kind),
            "choices": [self.shape.choice(e, self.head(e.index)) for e in own],
            "usage": self.usage(own),
            "tiller": self.told(own, twins),
        }

    def told(self, own: Sequence[Ended], twins: Sequence[Ended]) -> Json:
        """The `tiller` object, now that all is written."""
        told = {**self.tiller, "choices": [{"index": e.index, **e.facts} for e in own]}
        if self.order.compare:
            told["plain_choices"] = [{"index": e.index, **e.facts} for e in twins]
            told["plain"] = [self.shape.choice(e, self.head(e.index)) for e in twins]
            told["plain_usage"] = self.usage(twins)
        return told

    def usage(self, ended: Sequence[Ended]) -> Json:
        """Tokens read and written; a prompt of several choices is read once."""
        read = sum(self.prepared.prompt_tokens)
        written = sum(e.completion_tokens for e in ended)
        cached = sum(e.cached_tokens for e in ended if e.index % self.order.n == 0)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    async def events(
        self, events: AsyncIterator[TextEvent], *, usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; the last chunk has the `tiller` object.

        Plain twins are the choices from `rows` on, and say so.
        """
        chunks = _Chunks(self, usage)
        try:
            for chunk in chunks.openings():
                yield chunk
            async for happened in events:
                for chunk in chunks.of(happened):
                    yield chunk
            if usage:
                yield chunks.usage()
        except Refusal as refusal:
            yield sse(openai_error(refusal))
        yield DONE


class _Chunks:
    """An answer in pieces; knows how much of each choice was said."""

    def __init__(self, answer: Answer, usage: bool) -> None:
        self.answer, self.shape, self.with_usage = answer, answer.shape, usage
        self.ended: list[Ended] = []
        places = range(answer.rows * (2 if answer.order.compare else 1))
        self.heads = [answer.head(place % answer.rows) for place in places]
        self.offsets = [len(head) for head in self.heads]

    def openings(self) -> Iterator[bytes]:
        """The first chunk of each choice."""
        for place, head in enumerate(self.heads):
            yield self._chunk(place, self.shape.opening(head))

    def of(self, happened: TextEvent) -> Iterator[bytes]:
        """What an event adds."""
        if isinstance(happened, Prepared):  # told in the last chunk
            return
        place = happened.index + (self.answer.rows if happened.plain else 0)
        if happened.text or happened.tokens:
            yield self._chunk(place, self.shape.more(happened, self.offsets[place]))
            self.offsets[place] += len(happened.text)
        if isinstance(happened, Ended):
            self.ended.append(happened)
            last = len(self.ended) == len(self.heads) and not self.with_usage
            extra = {"tiller": self.tiller} if last else {}
            yield self._chunk(place, self.shape.closing(happened.finish), extra)

    def usage(self) -> bytes:
        """The last chunk of a stream that was asked for its usage: it has no choices."""
        own, _ = _parted(self.ended)
        told = {"choices": [], "usage": self.answer.usage(own), "tiller": self.tiller}
        return sse({**self.answer.envelope(self.shape.chunk), **told})

    @property
    def tiller(self) -> Json:
        """What was applied, now that all is written."""
        return self.answer.told(*_parted(self.ended))

    def _chunk(self, place: int, choice: Json, extra: Json | None = None) -> bytes:
        marks = _PLAIN if place >= self.answer.rows else {}
        body = {
            **self.answer.envelope(self.shape.chunk),
            "choices": [{"index": place, "logprobs": None, **choice, **marks}],
            **({"usage": None} if self.with_usage else {}),
            **(extra or {}),
        }
        return sse(body)


def _parted(ended: Sequence[Ended]) -> tuple[list[Ended], list[Ended]]:
    """The choices and their plain twins, each in order."""
    in_order = sorted(ended, key=lambda e: e.index)
    return [e for e in in_order if not e.plain], [e for e in in_order if e.plain]


class ChatShape:
    """`chat.completion` and its chunks."""

    prefix, kind, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, ended: Ended, head: str) -> Json:  # noqa: ARG002 - no answer repeats its prompt
        """A whole choice."""
        return {
            "index": ended.index,
            "message": {"role": "assistant", "content": ended.text, "refusal": None},
            "logprobs": self._logprobs(ended.tokens),
            "finish_reason": ended.finish,
        }

    def opening(self, head: str) -> Json:  # noqa: ARG002 - as above
        """The first chunk of a choice."""
        return {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def more(self, wrote: Wrote | Ended, offset: int) -> Json:  # noqa: ARG002 - completions count
        """A chunk with more text."""
        return {
            "delta": {"content": wrote.text},
            "logprobs": self._logprobs(wrote.tokens),
            "finish_reason": None,
        }

    def closing(self, finish: str) -> Json:
        """The last chunk of a choice."""
        return {"delta": {}, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[TokenTold]) -> Json | None:
        if not tokens:
            return None
        content = [{**_likely(t), "top_logprobs": [_likely(o) for o in t.top]} for t in tokens]
        return {"content": content, "refusal": None}


class CompletionShape:
    """`text_completion`, whose chunks have the same shape."""

    prefix, kind, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, ended: Ended, head: str) -> Json:
        """A whole choice, with its prompt in front if that was asked for."""
        return {
            "index": ended.index,
            "text": head + ended.text,
            "logprobs": self._logprobs(ended.tokens, len(head)),
            "finish_reason": ended.finish,
        }

    def opening(self, head: str) -> Json:
        """The first chunk of a choice."""
        return {"text": head, "finish_reason": None}

    def more(self, wrote: Wrote | Ended, offset: int) -> Json:
        """A chunk with more text."""
        return {
            "text": wrote.text,
            "logprobs": self._logprobs(wrote.tokens, offset),
            "finish_reason": None,
        }

    def closing(self, finish: str) -> Json:
        """The last chunk of a choice."""
        return {"text": "", "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[TokenTold], offset: int) -> Json | None:
        if not tokens:
            return None
        offsets = [offset]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token.text))
        return {
            "tokens": [t.text for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            # Parts of characters look alike; of those the likeliest is told.
            "top_logprobs": [{o.text: o.logprob for o in reversed(t.top)} for t in tokens],
            "text_offset": offsets,
        }


def _likely(token: Likely) -> Json:
    """A token as chat tells it; part of a character has no text of its own, so no bytes either."""
    data: list[int] | None = None if "\ufffd" in token.text else list(token.text.encode())
    return {"token": token.text, "logprob": token.logprob, "bytes": data}
