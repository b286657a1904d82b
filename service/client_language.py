"""The SDK's texts: chat, questions about pictures and completions, edited and steered."""

import base64
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
Picture = str | Path | bytes
SEER = "miniature-vl"
"""Of the embedded models the one that reads pictures."""


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
    backpatch: str | Json | None = None,
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
        backpatch: `{"source": 9, "target": 2}`, or the name of a preset ("counting@live").
        n: How many choices.
        seed: Of all of them; drawn by lot, and told, if left out.
        max_tokens: Of each choice.
        temperature: 0 takes the likeliest token.
        stop: One string or several that end a choice.
        compare: Also say what the same seed says without edits, steering and back-patching.
        more: Any other key of the API: `top_p`, `logprobs`, `logit_bias`, ...
    """
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    settings = {
        "backpatch": {"preset": backpatch} if isinstance(backpatch, str) else backpatch,
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


def _see(  # noqa: PLR0913 - the request's keys
    pictures: Picture | Sequence[Picture],
    question: str,
    *,
    model: str = SEER,
    system: str | None = None,
    backpatch: str | Json | None = None,
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
    """Ask about a picture, or several; settings as of `chat`, and `system`, which is told first.

    Pictures are files, their bytes, or addresses at hosts that the service fetches from; the
    question stands behind them. The model is one that sees.
    """
    shown = [pictures] if isinstance(pictures, str | Path | bytes) else list(pictures)
    parts = [{"type": "image_url", "image_url": {"url": _address(one)}} for one in shown]
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return _chat(
        [*([{"role": "system", "content": system}] if system else []), asked],
        model=model,
        backpatch=backpatch,
        edits=edits,
        steering=steering,
        n=n,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        stop=stop,
        compare=compare,
        more=more,
    )


def _address(picture: Picture) -> str:
    """An address as it is; a file or its bytes as a data URI, whose kind the service finds out."""
    if isinstance(picture, str) and picture.startswith(("data:", "http://", "https://")):
        return picture
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


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
    see = now(_see)
    see_events = each(_see)
    complete = now(_complete)
    complete_events = each(_complete)


class AsyncTexts(Async):
    """Writing; the `events` are OpenAI's chunks, the last of which has the `tiller` object."""

    chat = later(_chat)
    chat_events = each_later(_chat)
    see = later(_see)
    see_events = each_later(_see)
    complete = later(_complete)
    complete_events = each_later(_complete)
