"""`tiller serve --local`: one process, uvicorn, no Ray; the same application and the same hosts."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Literal

import structlog
import uvicorn

from models.errors import Refusal
from models.family import Lens
from service.app import build
from service.errors import NotReady, PortTaken
from service.hosts import AnyHost, host_of
from service.orders import TextEvent, TextOrder
from service.questions import Question
from service.registry import Registry
from service.settings import Model, Settings
from service.telemetry import log_as_json
from service.workbench import (
    Adopted,
    Arrival,
    HostEvent,
    ImageOrder,
    LensOrder,
    Workbench,
    assemble,
    open_home,
)


class LocalHost:
    """A host of this process that loads in the background."""

    def __init__(self, model: Model, settings: Settings, registry: Registry) -> None:
        self.name, self.host, self.broken = model.name, None, None
        self._make = (model, settings, registry)
        self._thread = threading.Thread(target=self._load, name=f"load-{model.name}", daemon=True)
        self._thread.start()

    host: AnyHost | None
    broken: Refusal | None

    def _load(self) -> None:
        try:
            host = host_of(*self._make)
            host.start()
            self.host = host
        except Refusal as refusal:
            self.broken = refusal
        except Exception as error:
            structlog.get_logger("tiller.local").exception("load_failed", model=self.name)
            self.broken = NotReady(self.name)
            raise error from None

    @property
    def ready(self) -> AnyHost:
        """The loaded host.

        Raises:
            NotReady: It is being loaded.
        """
        if self.broken is not None:
            raise self.broken
        if self.host is None:
            raise NotReady(self.name)
        return self.host

    async def card(self) -> Mapping[str, Any]:
        """As `Host`."""
        return await self.ready.card()

    async def draw(self, order: ImageOrder) -> AsyncIterator[HostEvent]:
        """As `Host`."""
        async with aclosing(self.ready.draw(order)) as events:  # type: ignore[type-var]
            async for happened in events:
                yield happened

    async def lens(self, encoder: str | None) -> Lens:
        """As `Host`."""
        return await self.ready.lens(encoder)

    async def look(self, order: LensOrder) -> AsyncIterator[HostEvent]:
        """As `Host`."""
        async with aclosing(self.ready.look(order)) as events:  # type: ignore[type-var]
            async for happened in events:
                yield happened

    async def write(self, order: TextOrder) -> AsyncIterator[TextEvent]:
        """As `Host`."""
        async with aclosing(self.ready.write(order)) as events:  # type: ignore[type-var]
            async for happened in events:
                yield happened

    async def check_fact(self, payload: Mapping[str, Any]) -> None:
        """As `Host`."""
        await self.ready.check_fact(payload)

    async def export(self, digest: str, form: Literal["peft", "diffusers"]) -> bytes:
        """As `Host`."""
        return await self.ready.export(digest, form)

    async def adopt(self, arrival: Arrival) -> Adopted:
        """As `Host`."""
        return await self.ready.adopt(arrival)

    async def answer(self, question: Question) -> Any:
        """As `Host`."""
        return await self.ready.answer(question)

    async def load(self) -> Mapping[str, Any]:
        """As `Host`."""
        return await self.ready.load()

    def close(self, seconds: float) -> None:
        """Finish the rows and stop."""
        self._thread.join(seconds)
        if self.host is not None:
            self.host.close(seconds)


@contextmanager
def running(settings: Settings) -> Iterator[tuple[str, Workbench]]:
    """The service on a thread of this process: its address and its workbench.

    At the end nothing new is admitted, rows under way are finished, then all is closed.
    """
    registry = open_home(settings)
    hosts = {m.name: LocalHost(m, settings, registry) for m in settings.models}
    bench = assemble(settings, registry, hosts)
    server = uvicorn.Server(
        uvicorn.Config(
            build(bench),
            host=settings.server.host,
            port=settings.server.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, name="http", daemon=True)
    thread.start()
    try:
        yield _address(server, thread), bench
    finally:
        bench.draining.set()
        for host in hosts.values():
            host.close(settings.server.drain_seconds)
        server.should_exit = True
        thread.join(15)
        registry.close()


def _address(server: uvicorn.Server, thread: threading.Thread) -> str:
    while not server.started:
        if not thread.is_alive():
            raise PortTaken(f"{server.config.host}:{server.config.port}")
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Serve until `stop` is set."""
    log_as_json()
    with running(settings) as (url, bench):
        tell(f"Tiller on {url} (one process, no Ray); models: {', '.join(bench.hosts)}")
        announced = False
        while not stop.wait(0.2):
            if not announced and _ready(bench):
                tell("ready")
                announced = True
        tell("draining")


def _ready(bench: Workbench) -> bool:
    async def cards() -> None:
        for host in bench.hosts.values():
            await host.card()

    try:
        asyncio.run(cards())
    except NotReady:
        return False
    return True
