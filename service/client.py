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

import os
from collections.abc import (
    AsyncIterator,
    Iterator,
)
from types import TracebackType
from typing import Any, Self

import httpx2

from service.calls import (
    TIMEOUT,
    Call,
    Json,
    T,
    TillerError,
    Told,
    error_of,
    unreachable,
)
from service.client_backpatch import AsyncBackPatch, BackPatch
from service.client_edits import AsyncEdits, Edits
from service.client_evidence import AsyncDatasets, AsyncEvaluations, Datasets, Evaluations
from service.client_hosted import AsyncKeys, AsyncModels, AsyncVariants, Keys, Models, Variants
from service.client_jobs import AsyncJobs, Jobs
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

DEFAULT_URL = "http://127.0.0.1:8311"


def _settled(base_url: str | None, api_key: str | None) -> tuple[str, dict[str, str]]:
    url = base_url or os.environ.get("TILLER_URL") or DEFAULT_URL
    key = api_key or os.environ.get("TILLER_API_KEY")
    return url, {"Authorization": f"Bearer {key}"} if key else {}


class Tiller:
    """A client. Address and key default to `TILLER_URL` and `TILLER_API_KEY`."""

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        url, headers = _settled(base_url, api_key)
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=TIMEOUT)
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
        self.http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT)
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
