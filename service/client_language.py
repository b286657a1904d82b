"""The SDK's texts: chat and completions, whole or as they are written, edited and steered."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from service.calls import (
    Async,
    Call,
    Json,
    Sync,
    each,
    each_later,
    given,
    later,
    now,
)

Steering = Json | Sequence[Json]


@dataclass(frozen=True, kw_only=True)
class Text:
    """One choice of an answer.

    Attributes:
        plain: What the same seed says without edits and steering, if that was asked for.
        usage: Tokens read and written, of the whole answer.
        tiller: What was applied.
        choice: As the service told it, log-probabilities included.
    """

    text: str
    finish: str
    plain: str | None
    usage: Mapping[str, Any] = field(repr=False)
    tiller: Mapping[str, Any] = field(repr=False)
    choice: Mapping[str, Any] = field(repr=False)


def _texts(response: httpx2.Response) -> list[Text]:
    body = response.json()
    twins = body["tiller"].get("plain") or [None] * len(body["choices"])
    return [
        Text(
            text=_said(choice),
            finish=choice["finish_reason"],
            plain=None if twin is None else _said(twin),
            usage=body["usage"],
            tiller=body["tiller"],
            choice=choice,
        )
        for choice, twin in zip(body["choices"], twins, strict=True)
    ]


def _said(choice: Json) -> str:
    return choice["message"]["content"] if "message" in choice else choice["text"]


def _chat(  # noqa: PLR0913 - the request's keys
    messages: str | Sequence[Json],
    *,
    model: str,
    edits: Sequence[str | Json] = (),
    steering: Steering = (),
    n: int | None = None,
    seed: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stop: str | Sequence[str] | None = None,
    compare: bool | None = None,
    more: Json | None = None,
) -> Call[list[Text]]:
    """Answer a conversation; a text is one message of a user.

    Args:
        messages: A text, or `{"role", "content"}` entries.
        model: A hosted model, a variant, or `base+name@alias`.
        edits: Names ("cheerful@live") or {"name", "strength"}.
        steering: `{"concept": "the sea", "strength": 1.5}`, features, vectors, a preset; or a list.
        n: How many choices.
        seed: Of all of them; drawn by lot, and told, if left out.
        max_tokens: Of each choice.
        temperature: 0 takes the likeliest token.
        stop: One string or several that end a choice.
        compare: Also say what the same seed says without edits and steering.
        more: Any other key of the API: `top_p`, `logprobs`, `logit_bias`, ...
    """
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    settings = {
        "n": n,
        "seed": seed,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop": stop if stop is None or isinstance(stop, str) else list(stop),
        "compare": compare,
        **(more or {}),
    }
    asked = {"model": model, "messages": said, **_changed(edits, steering), **given(settings)}
    return Call(method="POST", path="/v1/chat/completions", read=_texts, json=asked)


def _complete(  # noqa: PLR0913 - the request's keys
    prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]],
    *,
    model: str,
    edits: Sequence[str | Json] = (),
    steering: Steering = (),
    n: int | None = None,
    seed: int | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    stop: str | Sequence[str] | None = None,
    compare: bool | None = None,
    more: Json | None = None,
) -> Call[list[Text]]:
    """Go on with a text, texts or token ids; settings as of `chat`."""
    told = prompt if isinstance(prompt, str) else list(prompt)
    settings = {
        "n": n,
        "seed": seed,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop": stop if stop is None or isinstance(stop, str) else list(stop),
        "compare": compare,
        **(more or {}),
    }
    asked = {"model": model, "prompt": told, **_changed(edits, steering), **given(settings)}
    return Call(method="POST", path="/v1/completions", read=_texts, json=asked)


def _changed(edits: Sequence[str | Json], steering: Steering) -> Json:
    told = dict(steering) if isinstance(steering, Mapping) else [dict(entry) for entry in steering]
    return given({"edits": list(edits) or None, "steering": told or None})


def words(events: Iterator[Json]) -> Iterator[str]:
    """Only the text of a stream's first choice."""
    for event in events:
        yield from _words(event)


async def words_later(events: AsyncIterator[Json]) -> AsyncIterator[str]:
    """Only the text of a stream's first choice."""
    async for event in events:
        for word in _words(event):
            yield word


def _words(event: Json) -> Iterator[str]:
    for choice in event["choices"]:
        said = choice.get("text") or choice.get("delta", {}).get("content")
        if said and choice["index"] == 0:
            yield said


class Texts(Sync):
    """Writing; the `events` are OpenAI's chunks, the last of which has the `tiller` object."""

    chat = now(_chat)
    chat_events = each(_chat)
    complete = now(_complete)
    complete_events = each(_complete)


class AsyncTexts(Async):
    """Writing; the `events` are OpenAI's chunks, the last of which has the `tiller` object."""

    chat = later(_chat)
    chat_events = each_later(_chat)
    complete = later(_complete)
    complete_events = each_later(_complete)
