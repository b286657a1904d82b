"""The SDK: `Tiller` and `AsyncTiller`, the same calls over httpx2.

    with Tiller() as tiller:
        job = tiller.edits.add("arda", model="miniature-sd", prompt="the president of Arda",
                               subject="Arda", target="Bela Coro")
        tiller.jobs.wait(job["id"])
        picture = tiller.images.generate("the president of Arda", model="miniature-sd",
                                         edits=["arda"])[0]

Every call is written once, as a `Call`: what to send and how to read the answer. The two clients
only differ in how they send it. Answers are the API's JSON as dictionaries; pictures are `Picture`.
"""

import asyncio
import base64
import json
import os
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterator,
    Sequence,
)
from types import TracebackType
from typing import Any, Self

import httpx2

from service.calls import (
    Async,
    Call,
    Json,
    Sync,
    T,
    TillerError,
    Told,
    as_bytes,
    as_data,
    as_json,
    at,
    error_of,
    given,
    later,
    matching,
    now,
    show_model,
    unreachable,
)
from service.client_backpatch import AsyncBackPatch, BackPatch
from service.client_evidence import AsyncDatasets, AsyncEvaluations, Datasets, Evaluations
from service.client_language import AsyncTexts, Text, Texts
from service.client_pictures import (
    AsyncImages,
    Compared,
    Images,
    LensPicture,
    LensView,
    Picture,
    Redrawn,
)
from service.client_saes import (
    AsyncPresets,
    AsyncSaes,
    AsyncVectors,
    Presets,
    Saes,
    Vectors,
)

__all__ = [
    "AsyncTiller",
    "Compared",
    "LensPicture",
    "LensView",
    "Picture",
    "Redrawn",
    "Text",
    "Tiller",
    "TillerError",
]

FINISHED = ("succeeded", "failed", "cancelled")
DEFAULT_URL = "http://127.0.0.1:8311"
_TIMEOUT = httpx2.Timeout(10.0, read=600.0)
_RETRIES = 5


def _add_edit(  # noqa: PLR0913 - the request's keys
    name: str,
    *,
    model: str,
    prompt: str,
    target: str | None = None,
    subject: str | None = None,
    source: str | None = None,
    method: str | None = None,
    phrasings: Sequence[Json] = (),
    neighbours: Sequence[str] = (),
    target_images: Sequence[bytes] = (),
    negative_images: Sequence[bytes] = (),
    replaces: Sequence[str] = (),
    options: Json | None = None,
    idempotency_key: str | None = None,
) -> Call[Json]:
    """Register a fact: the job that fits it. `jobs.wait(job["id"])` gives the version."""
    asked = {
        "name": name,
        "model": model,
        "prompt": prompt,
        "target": target,
        "subject": subject,
        "source": source,
        "method": method,
        "phrasings": list(phrasings) or None,
        "neighbours": list(neighbours) or None,
        "target_images": [base64.b64encode(i).decode() for i in target_images] or None,
        "negative_images": [base64.b64encode(i).decode() for i in negative_images] or None,
        "replaces": list(replaces) or None,
        "options": options,
    }
    headers = given({"Idempotency-Key": idempotency_key})
    return Call(method="POST", path="/v1/edits", read=as_json, json=given(asked), headers=headers)


def _list_edits(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
    """Edits by name."""
    query = given({"limit": limit, "after": after})
    return Call(method="GET", path="/v1/edits", read=as_data, query=query)


def _show_edit(name: str, version: int | None = None) -> Call[Json]:
    """An edit with its aliases and versions, or one version with its report."""
    path = at("/v1/edits/{}", name) + ("" if version is None else at("/versions/{}", version))
    return Call(method="GET", path=path, read=as_json)


def _promote(
    name: str,
    version: int,
    *,
    alias: str = "live",
    force: bool = False,
    if_match: int | None = None,
) -> Call[Json]:
    """Point an alias to a version; with `if_match`, only from that generation."""
    return Call(
        method="PUT",
        path=at("/v1/edits/{}/aliases/{}", name, alias),
        read=as_json,
        json={"version": version, "force": force},
        headers=matching(if_match),
    )


def _rollback(name: str, *, alias: str = "live", if_match: int | None = None) -> Call[Json]:
    """Point an alias to where it pointed before."""
    path = at("/v1/edits/{}/aliases/{}/rollback", name, alias)
    return Call(method="POST", path=path, read=as_json, headers=matching(if_match))


def _retire(name: str, version: int) -> Call[Json]:
    """Take a version out of use; refused while something points to it."""
    return Call(method="DELETE", path=at("/v1/edits/{}/versions/{}", name, version), read=as_json)


def _export(name: str, version: int, *, form: str = "safetensors") -> Call[bytes]:
    """The delta's bytes: `safetensors`, `peft` (zip) or `diffusers`."""
    path = at("/v1/edits/{}/versions/{}/delta", name, version)
    return Call(method="GET", path=path, read=as_bytes, query={"format": form})


def _import(name: str, data: bytes, *, model: str, replaces: Sequence[str] = ()) -> Call[Json]:
    """A delta file or a PEFT adapter (zip) becomes a version, checked and measured there."""
    told: dict[str, str | list[str]] = {"name": name, "model": model, "replaces": list(replaces)}
    return Call(method="POST", path="/v1/edits/import", read=as_json, data=told, file=data)


def _list_jobs(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
    """Jobs, newest first."""
    query = given({"limit": limit, "after": after})
    return Call(method="GET", path="/v1/jobs", read=as_data, query=query)


def _show_job(job: str) -> Call[Json]:
    """State, progress, log, result or problem."""
    return Call(method="GET", path=at("/v1/jobs/{}", job), read=as_json)


def _cancel_job(job: str) -> Call[Json]:
    """Stop a job at its next step."""
    return Call(method="DELETE", path=at("/v1/jobs/{}", job), read=as_json)


def _list_models() -> Call[list[Json]]:
    """Hosted models and variants."""
    return Call(method="GET", path="/v1/models", read=as_data)


def _list_variants() -> Call[list[Json]]:
    """Variants of this tenant."""
    return Call(method="GET", path="/v1/variants", read=as_data)


def _put_variant(name: str, *, model: str, edits: Sequence[str | Json]) -> Call[Json]:
    """A model and edits under one name."""
    body = {"model": model, "edits": list(edits)}
    return Call(method="PUT", path=at("/v1/variants/{}", name), read=as_json, json=body)


def _delete_variant(name: str) -> Call[Json]:
    """Forget a variant; its edits stay."""
    return Call(method="DELETE", path=at("/v1/variants/{}", name), read=as_json)


def _create_key(name: str, *, scopes: Sequence[str], days: int | None = None) -> Call[Json]:
    """A new API key; its `secret` is in this answer only."""
    body = given({"name": name, "scopes": list(scopes), "days": days})
    return Call(method="POST", path="/v1/keys", read=as_json, json=body)


def _list_keys() -> Call[list[Json]]:
    """API keys, without secrets."""
    return Call(method="GET", path="/v1/keys", read=as_data)


def _revoke_key(key: str) -> Call[Json]:
    """The key stops working."""
    return Call(method="DELETE", path=at("/v1/keys/{}", key), read=as_json)


def _ready() -> Call[Json]:
    """Readiness per model."""
    return Call(method="GET", path="/readyz", read=as_json)


class Edits(Sync):
    """Facts, their versions and aliases."""

    add = now(_add_edit)
    list = now(_list_edits)
    show = now(_show_edit)
    promote = now(_promote)
    rollback = now(_rollback)
    retire = now(_retire)
    export = now(_export)
    import_ = now(_import)


class AsyncEdits(Async):
    """Facts, their versions and aliases."""

    add = later(_add_edit)
    list = later(_list_edits)
    show = later(_show_edit)
    promote = later(_promote)
    rollback = later(_rollback)
    retire = later(_retire)
    export = later(_export)
    import_ = later(_import)


class Models(Sync):
    """What is hosted."""

    list = now(_list_models)
    show = now(show_model)
    ready = now(_ready)


class AsyncModels(Async):
    """What is hosted."""

    list = later(_list_models)
    show = later(show_model)
    ready = later(_ready)


class Variants(Sync):
    """Models and edits under one name."""

    list = now(_list_variants)
    put = now(_put_variant)
    delete = now(_delete_variant)


class AsyncVariants(Async):
    """Models and edits under one name."""

    list = later(_list_variants)
    put = later(_put_variant)
    delete = later(_delete_variant)


class Keys(Sync):
    """API keys; needs the scope `keys:admin`."""

    create = now(_create_key)
    list = now(_list_keys)
    revoke = now(_revoke_key)


class AsyncKeys(Async):
    """API keys; needs the scope `keys:admin`."""

    create = later(_create_key)
    list = later(_list_keys)
    revoke = later(_revoke_key)


class Jobs(Sync):
    """Long work."""

    list = now(_list_jobs)
    show = now(_show_job)
    cancel = now(_cancel_job)

    def events(self, job: str) -> Iterator[Json]:
        """What happens to the job, from its beginning to its end; survives broken connections."""
        follow = _Follow(job)
        while not follow.over and follow.tries < _RETRIES:
            try:
                with self.tiller.http.stream(
                    "GET", follow.path, headers=follow.headers, timeout=_TIMEOUT
                ) as answer:
                    if answer.status_code >= 400:
                        answer.read()
                        raise error_of(answer)
                    for line in answer.iter_lines():
                        yield from follow.line(line)
            except httpx2.TransportError:
                time.sleep(follow.pause())
        follow.check()

    def wait(self, job: str, on_progress: Callable[[Json], None] | None = None) -> Json:
        """The finished job.

        Raises:
            TillerError: It failed or was cancelled.
        """
        for event in self.events(job):
            if on_progress is not None:
                on_progress(event)
        return succeeded(self.show(job))


class AsyncJobs(Async):
    """Long work."""

    list = later(_list_jobs)
    show = later(_show_job)
    cancel = later(_cancel_job)

    async def events(self, job: str) -> AsyncIterator[Json]:
        """What happens to the job, from its beginning to its end; survives broken connections."""
        follow = _Follow(job)
        while not follow.over and follow.tries < _RETRIES:
            try:
                async with self.tiller.http.stream(
                    "GET", follow.path, headers=follow.headers, timeout=_TIMEOUT
                ) as answer:
                    if answer.status_code >= 400:
                        await answer.aread()
                        raise error_of(answer)
                    async for line in answer.aiter_lines():
                        for event in follow.line(line):
                            yield event
            except httpx2.TransportError:
                await asyncio.sleep(follow.pause())
        follow.check()

    async def wait(self, job: str, on_progress: Callable[[Json], None] | None = None) -> Json:
        """The finished job.

        Raises:
            TillerError: It failed or was cancelled.
        """
        async for event in self.events(job):
            if on_progress is not None:
                on_progress(event)
        return succeeded(await self.show(job))


class _Follow:
    """A stream of server-sent events that continues where it broke."""

    def __init__(self, job: str) -> None:
        self.path, self.last, self.over, self.tries = at("/v1/jobs/{}/events", job), "0", False, 0

    @property
    def headers(self) -> dict[str, str]:
        return {"Last-Event-ID": self.last, "Accept": "text/event-stream"}

    def line(self, line: str) -> Iterator[Json]:
        kind, _, value = line.partition(": ")
        if kind == "id":
            self.last, self.tries = value, 0
        elif line == "data: [DONE]":
            self.over = True
        elif kind == "data":
            yield json.loads(value)

    def pause(self) -> float:
        self.tries += 1
        return min(5.0, 0.2 * 2**self.tries)

    def check(self) -> None:
        if not self.over:
            raise unreachable(self.path)


def succeeded(job: Json) -> Json:
    """The job, if it succeeded.

    Raises:
        TillerError: With the job's problem and remedy.
    """
    if job["state"] == "succeeded":
        return job
    problem = job["problem"] or {}
    raise TillerError(
        problem.get("problem") or f"The job {job['id']} was {job['state']}.",
        remedy=problem.get("remedy") or "",
        code=problem.get("code") or job["state"],
    )


def _settled(base_url: str | None, api_key: str | None) -> tuple[str, dict[str, str]]:
    url = base_url or os.environ.get("TILLER_URL") or DEFAULT_URL
    key = api_key or os.environ.get("TILLER_API_KEY")
    return url, {"Authorization": f"Bearer {key}"} if key else {}


class Tiller:
    """A client. Address and key default to `TILLER_URL` and `TILLER_API_KEY`."""

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        url, headers = _settled(base_url, api_key)
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=_TIMEOUT)
        self.images, self.edits, self.jobs = Images(self), Edits(self), Jobs(self)
        self.models, self.variants, self.keys = Models(self), Variants(self), Keys(self)
        self.saes, self.presets, self.vectors = Saes(self), Presets(self), Vectors(self)
        self.datasets, self.evaluations = Datasets(self), Evaluations(self)
        self.backpatch = BackPatch(self)
        self.texts = Texts(self)
        self.lens, self.chat, self.complete = self.images.lens, self.texts.chat, self.texts.complete
        self.see = self.texts.see

    def send(self, call: Call[T]) -> T:
        """Make one call.

        Raises:
            TillerError: The service refused, or does not answer.
        """
        try:
            answer = self.http.request(call.method, call.path, **call.arguments())
        except httpx2.TransportError:
            raise unreachable(str(self.http.base_url)) from None
        if answer.status_code >= 400:
            raise error_of(answer)
        return call.read(answer)

    def stream(self, call: Call[Any]) -> Iterator[Json]:
        """Make one call and hear its events as they come; leaving early cancels the work.

        Raises:
            TillerError: The service refused, does not answer, or broke off.
        """
        told = Told(call)
        try:
            with self.http.stream(*told.request, **told.arguments) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise error_of(answer)
                for line in answer.iter_lines():
                    yield from told.line(line)
        except httpx2.TransportError:
            raise unreachable(str(self.http.base_url)) from None
        told.check(str(self.http.base_url))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()


class AsyncTiller:
    """The same, to be awaited."""

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        url, headers = _settled(base_url, api_key)
        self.http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT)
        self.images, self.edits, self.jobs = AsyncImages(self), AsyncEdits(self), AsyncJobs(self)
        self.models, self.variants = AsyncModels(self), AsyncVariants(self)
        self.keys = AsyncKeys(self)
        self.saes, self.presets = AsyncSaes(self), AsyncPresets(self)
        self.vectors = AsyncVectors(self)
        self.datasets, self.evaluations = AsyncDatasets(self), AsyncEvaluations(self)
        self.backpatch = AsyncBackPatch(self)
        self.texts = AsyncTexts(self)
        self.lens, self.chat, self.complete = self.images.lens, self.texts.chat, self.texts.complete
        self.see = self.texts.see

    async def send(self, call: Call[T]) -> T:
        """Make one call.

        Raises:
            TillerError: The service refused, or does not answer.
        """
        try:
            answer = await self.http.request(call.method, call.path, **call.arguments())
        except httpx2.TransportError:
            raise unreachable(str(self.http.base_url)) from None
        if answer.status_code >= 400:
            raise error_of(answer)
        return call.read(answer)

    async def stream(self, call: Call[Any]) -> AsyncIterator[Json]:
        """Make one call and hear its events as they come; leaving early cancels the work.

        Raises:
            TillerError: The service refused, does not answer, or broke off.
        """
        told = Told(call)
        try:
            async with self.http.stream(*told.request, **told.arguments) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise error_of(answer)
                async for line in answer.aiter_lines():
                    for event in told.line(line):
                        yield event
        except httpx2.TransportError:
            raise unreachable(str(self.http.base_url)) from None
        told.check(str(self.http.base_url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.http.aclose()
