"""How the SDK asks: every call is written once, and sent by either of its two clients."""

import functools
import json
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

import httpx2

P = ParamSpec("P")
T = TypeVar("T")
Json = dict[str, Any]
TIMEOUT = httpx2.Timeout(10.0, read=600.0)


class TillerError(Exception):
    """The service refused, or could not be reached.

    Attributes:
        problem: What is wrong.
        remedy: What to do about it.
        code: For programs: `unknown_edit`, `alias_moved`, ...; `unreachable` without an answer.
        param: The key of the request that it is about, if it is about one.
        status: The HTTP status, 0 without an answer.
        request_id: What to quote to the operator.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str = "",
        code: str = "",
        param: str = "",
        status: int = 0,
        request_id: str = "",
    ) -> None:
        super().__init__(f"{problem} {remedy}".strip())
        self.problem, self.remedy, self.code = problem, remedy, code
        self.param, self.status, self.request_id = param, status, request_id


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
    filename: str = "delta"

    def arguments(self) -> Json:
        """For httpx2's `request`."""
        told: Json = {"headers": dict(self.headers), "params": dict(self.query)}
        if self.json is not None:
            told["json"] = self.json
        if self.file is not None:
            told["files"] = {"file": (self.filename, self.file, "application/octet-stream")}
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
        param=told.get("param") or "",
        status=response.status_code,
        request_id=request_id,
    )


def as_json(response: httpx2.Response) -> Json:
    """The whole body."""
    return response.json()


def as_data(response: httpx2.Response) -> list[Json]:
    """The entries of a list."""
    return response.json()["data"]


def as_bytes(response: httpx2.Response) -> bytes:
    """The body as it came."""
    return response.content


def given(told: Json) -> Json:
    """Only what was said: the service's own defaults stay its own."""
    return {key: value for key, value in told.items() if value is not None}


def matching(generation: int | None) -> dict[str, str]:
    """`If-Match`, if a generation is asked for."""
    return {} if generation is None else {"If-Match": f'"{generation}"'}


def at(path: str, *names: str | int) -> str:
    """The path with names of the caller's in its gaps (`{}`), each as one segment, quoted.

    Raises:
        TillerError: A name that no segment can be: it would lead elsewhere.
    """
    for name in names:
        if str(name) in ("", ".", ".."):
            raise TillerError(
                f"{str(name)!r} is no name.", remedy="Name one that there is.", code="bad_name"
            )
    return path.format(*(quote(str(name), safe="") for name in names))


def show_model(name: str) -> Call[Json]:
    """Family, fingerprint, sites, methods that apply."""
    return Call(method="GET", path=at("/v1/models/{}", name), read=as_json)


class Sends(Protocol):
    """What a noun needs of `Tiller`."""

    http: httpx2.Client

    def send(self, call: Call[T]) -> T:
        """Make one call."""
        ...

    def stream(self, call: Call[Any]) -> Iterator[Json]:
        """Make one call and hear its events."""
        ...


class SendsLater(Protocol):
    """What a noun needs of `AsyncTiller`."""

    http: httpx2.AsyncClient

    async def send(self, call: Call[T]) -> T:
        """Make one call."""
        ...

    def stream(self, call: Call[Any]) -> AsyncIterator[Json]:
        """Make one call and hear its events."""
        ...


class Sync:
    """A noun of the API, for `Tiller`."""

    def __init__(self, tiller: "Sends") -> None:
        self.tiller = tiller


class Async:
    """A noun of the API, for `AsyncTiller`."""

    def __init__(self, tiller: "SendsLater") -> None:
        self.tiller = tiller


def now(build: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], T]:
    """A method of `Sync` that makes the call."""

    @functools.wraps(build)
    def call(self: Any, *args: P.args, **named: P.kwargs) -> T:
        return self.tiller.send(build(*args, **named))

    return call


def later(build: Callable[P, Call[T]]) -> Callable[Concatenate[Any, P], Awaitable[T]]:
    """A method of `Async` that makes the call."""

    @functools.wraps(build)
    async def call(self: Any, *args: P.args, **named: P.kwargs) -> T:
        return await self.tiller.send(build(*args, **named))

    return call


def all_now(
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


def all_later(
    build: Callable[P, Generator[Call[Any], Any, T]],
) -> Callable[Concatenate[Any, P], Awaitable[T]]:
    """The same, to be awaited."""

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


def each(build: Callable[P, Call[Any]]) -> Callable[Concatenate[Any, P], Iterator[Json]]:
    """A method of `Sync` that makes the call and hears its events."""

    @functools.wraps(build)
    def call(self: Any, *args: P.args, **named: P.kwargs) -> Iterator[Json]:
        return self.tiller.stream(build(*args, **named))

    return call


def each_later(
    build: Callable[P, Call[Any]],
) -> Callable[Concatenate[Any, P], AsyncIterator[Json]]:
    """A method of `Async` that makes the call and hears its events."""

    @functools.wraps(build)
    def call(self: Any, *args: P.args, **named: P.kwargs) -> AsyncIterator[Json]:
        return self.tiller.stream(build(*args, **named))

    return call


class Told:
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
        """What a line of the stream tells; TillerError if the service failed meanwhile."""
        kind, _, value = line.partition(": ")
        if line == "data: [DONE]":
            self.over = True
        elif kind == "data":
            told = json.loads(value)
            if "error" in told:
                raise refused(told["error"])
            yield told

    def check(self, where: str) -> None:
        """TillerError if the stream broke off."""
        if not self.over:
            raise unreachable(where)


def refused(told: Json) -> TillerError:
    """A refusal that came while something was under way: its message holds the remedy too."""
    return TillerError(told.get("message") or "The service failed.", code=told.get("code") or "")


def unreachable(where: str) -> TillerError:
    """No answer at all."""
    return TillerError(
        f"No service answers at {where}.",
        remedy="Start one with `tiller serve`, or name another with --url or TILLER_URL.",
        code="unreachable",
    )
