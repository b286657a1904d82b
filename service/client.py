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
import functools
import json
import os
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import httpx2

from service.comparing import compared_sheet, largest_difference
from service.recipe import Recipe

P = ParamSpec("P")
T = TypeVar("T")
Json = dict[str, Any]
FINISHED = ("succeeded", "failed", "cancelled")
DEFAULT_URL = "http://127.0.0.1:8311"
_TIMEOUT = httpx2.Timeout(10.0, read=600.0)
_RETRIES = 5


class TillerError(Exception):
    """The service refused, or could not be reached.

    Attributes:
        problem: What is wrong.
        remedy: What to do about it.
        code: For programs: `unknown_edit`, `alias_moved`, ...; `unreachable` without an answer.
        status: The HTTP status, 0 without an answer.
        request_id: What to quote to the operator.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "",
        code: str = "",
        status: int = 0,
        request_id: str = "",
    ) -> None:
        super().__init__(f"{problem} {remedy}".strip())
        self.problem, self.remedy, self.code = problem, remedy, code
        self.status, self.request_id = status, request_id


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG and how it was made."""

    png: bytes
    seed: int
    tiller: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Redrawn:
    """A picture that was drawn again from what it says of itself.

    Attributes:
        recipe: What it said.
        differences: What is not as it was when it was drawn, as sentences; mostly none.
        off: The largest difference of the two pictures, in levels of 255: 0 is equal to the bit,
            None means that the file at hand has another size.
    """

    picture: Picture
    recipe: Recipe
    differences: tuple[str, ...]
    off: int | None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The same prompt and seeds without edits and with each of them.

    Attributes:
        pictures: By label, `without` first, in the order of the seeds.
        sheet: All of them in one PNG, labelled.
    """

    pictures: Mapping[str, Sequence[Picture]] = field(repr=False)
    sheet: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LensPicture(Picture):
    """What a text encoder knows at one layer.

    Attributes:
        layer: 0 is what enters the first block; the last is the ordinary picture.
        norm: What was done to the layer's state: `final norm` or `none`.
        beside: What other ways to the denoiser said: `blank`, `full`, or `none` if there are none.
    """

    layer: int
    norm: str
    beside: str


@dataclass(frozen=True, kw_only=True)
class LensView:
    """A prompt through the lens: a picture per layer and seed, and all of them on one sheet."""

    pictures: Sequence[LensPicture]
    sheet: bytes = field(repr=False)
    tiller: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    json: Json | None = None
    query: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str | list[str]] | None = None
    file: bytes | None = None

    def arguments(self) -> Json:
        """For httpx2's `request`."""
        told: Json = {"headers": dict(self.headers), "params": dict(self.query)}
        if self.json is not None:
            told["json"] = self.json
        if self.file is not None:
            told["files"] = {"file": ("delta", self.file, "application/octet-stream")}
            told["data"] = dict(self.data or {})
        return told


def error_of(response: httpx2.Response) -> TillerError:
    """The refusal of an answer, whichever of the two shapes it has."""
    request_id = response.headers.get("x-request-id", "")
    try:
        body = response.json()
    except ValueError:
        body = {}
    told = body.get("error") or body if isinstance(body, dict) else {}
    return TillerError(
        told.get("message")
        or told.get("detail")
        or f"The service answered {response.status_code}.",
        remedy=told.get("remedy") or "",
        code=told.get("code") or "",
        status=response.status_code,
        request_id=request_id,
    )


def _json(response: httpx2.Response) -> Json:
    return response.json()


def _data(response: httpx2.Response) -> list[Json]:
    return response.json()["data"]


def _bytes(response: httpx2.Response) -> bytes:
    return response.content


def _pictures(response: httpx2.Response) -> list[Picture]:
    body = response.json()
    tiller = body["tiller"]
    return [
        Picture(png=base64.b64decode(shown["b64_json"]), seed=made["seed"], tiller=tiller)
        for shown, made in zip(body["data"], tiller["images"], strict=True)
    ]


def _lens_view(response: httpx2.Response) -> LensView:
    body = response.json()
    tiller = body["tiller"]
    pictures = [
        LensPicture(
            png=base64.b64decode(shown["b64_json"]),
            tiller=tiller,
            **{key: shown[key] for key in ("seed", "layer", "norm", "beside")},
        )
        for shown in body["data"]
    ]
    sheet = base64.b64decode(body["sheet"]["b64_json"])
    return LensView(pictures=pictures, sheet=sheet, tiller=tiller)


def _given(told: Json) -> Json:
    """Only what was said: the service's own defaults stay its own."""
    return {key: value for key, value in told.items() if value is not None}


def _if_match(generation: int | None) -> dict[str, str]:
    return {} if generation is None else {"If-Match": f'"{generation}"'}


def _generate(  # noqa: PLR0913 - the request's keys
    prompt: str,
    *,
    model: str,
    edits: Sequence[str | Json] = (),
    n: int = 1,
    seed: int | None = None,
    size: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    negative_edits: str | None = None,
    sampler: str | None = None,
) -> Call[list[Picture]]:
    """Draw `n` pictures; `edits` are names ("potus@live") or {"name", "strength"}."""
    asked = {
        "model": model,
        "prompt": prompt,
        "n": n,
        "edits": list(edits) or None,
        "seed": seed,
        "size": size,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "negative_edits": negative_edits,
        "sampler": sampler,
    }
    path = "/v1/images/generations"
    return Call(method="POST", path=path, read=_pictures, json=_given(asked))


def _redraw(
    png: bytes, *, model: str | None = None, force: bool = False
) -> Generator[Call[Any], Any, Redrawn]:
    """Draw a picture again, edits by their digests, however their aliases moved since.

    Args:
        png: A picture that Tiller drew, as it was given out.
        model: Where its model has another name by now.
        force: Draw it by other weights too; it will be another picture.

    Raises:
        NoRecipe: It does not say how it was drawn.
        OtherWeights: The model has other weights now, and nobody forces it.
    """
    recipe = Recipe.read(png)
    card = yield _show_model(model or recipe.model)
    if "fingerprint" not in card:
        problem = f"The model {card['id']} is not ready ({card.get('state')})."
        raise TillerError(problem, remedy="Ask again soon.", code="not_ready", status=503)
    differences = recipe.differences(card, force=force)
    [picture] = yield _generate(**recipe.request(model))
    off = largest_difference(png, picture.png)
    return Redrawn(picture=picture, recipe=recipe, differences=differences, off=off)


def _compare(  # noqa: PLR0913 - the request's keys
    prompt: str,
    compared: Sequence[str | Json],
    *,
    model: str,
    edits: Sequence[str | Json] = (),
    n: int = 1,
    seed: int | None = None,
    size: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    negative_edits: str | None = None,
    sampler: str | None = None,
) -> Generator[Call[Any], Any, Compared]:
    """Draw `n` seeds without and with each of the compared edits; `edits` apply to all of them."""
    generate = functools.partial(
        _generate,
        prompt,
        model=model,
        n=n,
        size=size,
        steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        negative_edits=negative_edits,
        sampler=sampler,
    )
    before = yield generate(edits=edits, seed=seed)
    pictures = {"without": before}
    for edit in compared:
        after = yield generate(edits=[*edits, edit], seed=before[0].seed)
        pictures[f"with {_applied(edit, after[0].tiller['edits'][-1])}"] = after
    everywhere = ", ".join(_name(e) for e in before[0].tiller["edits"])
    sheet = compared_sheet(
        prompt,
        [picture.seed for picture in before],
        {label: [picture.png for picture in of] for label, of in pictures.items()},
        note=f"{model}, everywhere with {everywhere}" if everywhere else model,
    )
    return Compared(pictures=pictures, sheet=sheet)


def _applied(asked: str | Json, told: Json) -> str:
    """`potus@live = potus@3 x 0.5`: as it was asked for, and what that meant."""
    name = asked if isinstance(asked, str) else asked["name"]
    return name if name == _name(told) else f"{name} = {_name(told)}"


def _name(edit: Json) -> str:
    strength = "" if edit["strength"] == 1 else f" x {edit['strength']:g}"
    return f"{edit['name']}@{edit['version']}{strength}"


def _lens(  # noqa: PLR0913 - the request's keys
    prompt: str,
    *,
    model: str,
    layers: Sequence[int] | Json | str | None = None,
    encoder: str | None = None,
    beside: str | None = None,
    noise: str | None = None,
    edits: Sequence[str | Json] = (),
    n: int = 1,
    seed: int | None = None,
    size: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    negative_edits: str | None = None,
    sampler: str | None = None,
) -> Call[LensView]:
    """Draw a prompt from each layer of a text encoder: what does it know by then?

    `layers` are a list, `{"start", "stop", "step"}` as Python's range, or "all"; `n` seeds each.
    """
    picture = _generate(
        prompt,
        model=model,
        edits=edits,
        n=n,
        seed=seed,
        size=size,
        steps=steps,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        negative_edits=negative_edits,
        sampler=sampler,
    )
    looked = {"layers": layers, "encoder": encoder, "beside": beside, "noise": noise}
    if layers is not None and not isinstance(layers, str | dict):
        looked["layers"] = list(layers)
    asked = {**(picture.json or {}), **_given(looked)}
    return Call(method="POST", path="/v1/images/lens", read=_lens_view, json=asked)


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
    headers = _given({"Idempotency-Key": idempotency_key})
    return Call(method="POST", path="/v1/edits", read=_json, json=_given(asked), headers=headers)


def _list_edits(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
    """Edits by name."""
    query = _given({"limit": limit, "after": after})
    return Call(method="GET", path="/v1/edits", read=_data, query=query)


def _show_edit(name: str, version: int | None = None) -> Call[Json]:
    """An edit with its aliases and versions, or one version with its report."""
    path = f"/v1/edits/{name}" + ("" if version is None else f"/versions/{version}")
    return Call(method="GET", path=path, read=_json)


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
        path=f"/v1/edits/{name}/aliases/{alias}",
        read=_json,
        json={"version": version, "force": force},
        headers=_if_match(if_match),
    )


def _rollback(name: str, *, alias: str = "live", if_match: int | None = None) -> Call[Json]:
    """Point an alias to where it pointed before."""
    path = f"/v1/edits/{name}/aliases/{alias}/rollback"
    return Call(method="POST", path=path, read=_json, headers=_if_match(if_match))


def _retire(name: str, version: int) -> Call[Json]:
    """Take a version out of use; refused while something points to it."""
    return Call(method="DELETE", path=f"/v1/edits/{name}/versions/{version}", read=_json)


def _export(name: str, version: int, *, form: str = "safetensors") -> Call[bytes]:
    """The delta's bytes: `safetensors`, `peft` (zip) or `diffusers`."""
    path = f"/v1/edits/{name}/versions/{version}/delta"
    return Call(method="GET", path=path, read=_bytes, query={"format": form})


def _import(name: str, data: bytes, *, model: str, replaces: Sequence[str] = ()) -> Call[Json]:
    """A delta file or a PEFT adapter (zip) becomes a version, checked and measured there."""
    told: dict[str, str | list[str]] = {"name": name, "model": model, "replaces": list(replaces)}
    return Call(method="POST", path="/v1/edits/import", read=_json, data=told, file=data)


def _list_jobs(*, limit: int = 100, after: str | None = None) -> Call[list[Json]]:
    """Jobs, newest first."""
    query = _given({"limit": limit, "after": after})
    return Call(method="GET", path="/v1/jobs", read=_data, query=query)


def _show_job(job: str) -> Call[Json]:
    """State, progress, log, result or problem."""
    return Call(method="GET", path=f"/v1/jobs/{job}", read=_json)


def _cancel_job(job: str) -> Call[Json]:
    """Stop a job at its next step."""
    return Call(method="DELETE", path=f"/v1/jobs/{job}", read=_json)


def _list_models() -> Call[list[Json]]:
    """Hosted models and variants."""
    return Call(method="GET", path="/v1/models", read=_data)


def _show_model(name: str) -> Call[Json]:
    """Family, fingerprint, sites, methods that apply."""
    return Call(method="GET", path=f"/v1/models/{name}", read=_json)


def _list_variants() -> Call[list[Json]]:
    """Variants of this tenant."""
    return Call(method="GET", path="/v1/variants", read=_data)


def _put_variant(name: str, *, model: str, edits: Sequence[str | Json]) -> Call[Json]:
    """A model and edits under one name."""
    body = {"model": model, "edits": list(edits)}
    return Call(method="PUT", path=f"/v1/variants/{name}", read=_json, json=body)


def _delete_variant(name: str) -> Call[Json]:
    """Forget a variant; its edits stay."""
    return Call(method="DELETE", path=f"/v1/variants/{name}", read=_json)


def _create_key(name: str, *, scopes: Sequence[str], days: int | None = None) -> Call[Json]:
    """A new API key; its `secret` is in this answer only."""
    body = _given({"name": name, "scopes": list(scopes), "days": days})
    return Call(method="POST", path="/v1/keys", read=_json, json=body)


def _list_keys() -> Call[list[Json]]:
    """API keys, without secrets."""
    return Call(method="GET", path="/v1/keys", read=_data)


def _revoke_key(key: str) -> Call[Json]:
    """The key stops working."""
    return Call(method="DELETE", path=f"/v1/keys/{key}", read=_json)


def _ready() -> Call[Json]:
    """Readiness per model."""
    return Call(method="GET", path="/readyz", read=_json)


class _Sync:
    """A noun of the API, for `Tiller`."""

    def __init__(self, tiller: "Tiller") -> None:
        self.tiller = tiller


class _Async:
    """A noun of the API, for `AsyncTiller`."""

    def __init__(self, tiller: "AsyncTiller") -> None:
        self.tiller = tiller


def _now(build: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], T]:
    @functools.wraps(build)
    def call(self: Any, *args: P.args, **named: P.kwargs) -> T:
        return self.tiller.send(build(*args, **named))

    return call


def _later(build: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], Awaitable[T]]:
    @functools.wraps(build)
    async def call(self: Any, *args: P.args, **named: P.kwargs) -> T:
        return await self.tiller.send(build(*args, **named))

    return call


def _all_now(
    build: Callable[P, Generator[Call[Any], Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Several calls, one after another, each of which may depend on those before."""

    @functools.wraps(build)
    def calls(self: Any, *args: P.args, **named: P.kwargs) -> T:
        asking, answer = build(*args, **named), None
        while True:
            try:
                call = asking.send(answer)
            except StopIteration as over:
                return over.value
            answer = self.tiller.send(call)

    return calls


def _all_later(
    build: Callable[P, Generator[Call[Any], Any, T]],
) -> Callable[Concatenate[Any, P], Awaitable[T]]:
    @functools.wraps(build)
    async def calls(self: Any, *args: P.args, **named: P.kwargs) -> T:
        asking, answer = build(*args, **named), None
        while True:
            try:
                call = asking.send(answer)
            except StopIteration as over:
                return over.value
            answer = await self.tiller.send(call)

    return calls


def _each(build: Callable[P, Call[Any]]) -> Callable[Concatenate[Any, P], Iterator[Json]]:
    @functools.wraps(build)
    def call(self: Any, *args: P.args, **named: P.kwargs) -> Iterator[Json]:
        return self.tiller.stream(build(*args, **named))

    return call


def _each_later(
    build: Callable[P, Call[Any]],
) -> Callable[Concatenate[Any, P], AsyncIterator[Json]]:
    @functools.wraps(build)
    def call(self: Any, *args: P.args, **named: P.kwargs) -> AsyncIterator[Json]:
        return self.tiller.stream(build(*args, **named))

    return call


class Images(_Sync):
    """Drawing; `lens_events` tells a sweep as it goes on: steps, pictures, then the sheet."""

    generate = _now(_generate)
    lens = _now(_lens)
    lens_events = _each(_lens)
    redraw = _all_now(_redraw)
    compare = _all_now(_compare)


class AsyncImages(_Async):
    """Drawing; `lens_events` tells a sweep as it goes on: steps, pictures, then the sheet."""

    generate = _later(_generate)
    lens = _later(_lens)
    lens_events = _each_later(_lens)
    redraw = _all_later(_redraw)
    compare = _all_later(_compare)


class Edits(_Sync):
    """Facts, their versions and aliases."""

    add = _now(_add_edit)
    list = _now(_list_edits)
    show = _now(_show_edit)
    promote = _now(_promote)
    rollback = _now(_rollback)
    retire = _now(_retire)
    export = _now(_export)
    import_ = _now(_import)


class AsyncEdits(_Async):
    """Facts, their versions and aliases."""

    add = _later(_add_edit)
    list = _later(_list_edits)
    show = _later(_show_edit)
    promote = _later(_promote)
    rollback = _later(_rollback)
    retire = _later(_retire)
    export = _later(_export)
    import_ = _later(_import)


class Models(_Sync):
    """What is hosted."""

    list = _now(_list_models)
    show = _now(_show_model)
    ready = _now(_ready)


class AsyncModels(_Async):
    """What is hosted."""

    list = _later(_list_models)
    show = _later(_show_model)
    ready = _later(_ready)


class Variants(_Sync):
    """Models and edits under one name."""

    list = _now(_list_variants)
    put = _now(_put_variant)
    delete = _now(_delete_variant)


class AsyncVariants(_Async):
    """Models and edits under one name."""

    list = _later(_list_variants)
    put = _later(_put_variant)
    delete = _later(_delete_variant)


class Keys(_Sync):
    """API keys; needs the scope `keys:admin`."""

    create = _now(_create_key)
    list = _now(_list_keys)
    revoke = _now(_revoke_key)


class AsyncKeys(_Async):
    """API keys; needs the scope `keys:admin`."""

    create = _later(_create_key)
    list = _later(_list_keys)
    revoke = _later(_revoke_key)


class Jobs(_Sync):
    """Long work."""

    list = _now(_list_jobs)
    show = _now(_show_job)
    cancel = _now(_cancel_job)

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


class AsyncJobs(_Async):
    """Long work."""

    list = _later(_list_jobs)
    show = _later(_show_job)
    cancel = _later(_cancel_job)

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
        self.path, self.last, self.over, self.tries = f"/v1/jobs/{job}/events", "0", False, 0

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


class _Told:
    """The events of one call, to its end."""

    def __init__(self, call: Call[Any]) -> None:
        asked = Call(
            method=call.method,
            path=call.path,
            read=call.read,
            json={**(call.json or {}), "stream": True},
            headers={"Accept": "text/event-stream"},
        )
        self.request, self.over = (asked.method, asked.path), False
        self.arguments = asked.arguments()

    def line(self, line: str) -> Iterator[Json]:
        kind, _, value = line.partition(": ")
        if line == "data: [DONE]":
            self.over = True
        elif kind == "data":
            told = json.loads(value)
            if "error" in told:
                raise refused(told["error"])
            yield told

    def check(self, where: str) -> None:
        if not self.over:
            raise unreachable(where)


def refused(told: Json) -> TillerError:
    """A refusal that came while something was under way: its message holds the remedy too."""
    return TillerError(told.get("message") or "The service failed.", code=told.get("code") or "")


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


def unreachable(where: str) -> TillerError:
    """No answer at all."""
    return TillerError(
        f"No service answers at {where}.",
        remedy="Start one with `tiller serve`, or name another with --url or TILLER_URL.",
        code="unreachable",
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
        self.lens = self.images.lens

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
        told = _Told(call)
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
        self.lens = self.images.lens

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
        told = _Told(call)
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
