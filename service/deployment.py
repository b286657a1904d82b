"""Ray Serve: one gateway deployment, one deployment per hosted model, and a launcher that drains.

The only file that knows Ray, and thin: the application, the hosts and the engines are the ones of
`tiller serve --local`. Ray is imported inside functions, after its environment has been set.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Literal

from engines.errors import Full
from models.errors import Refusal
from models.family import Lens
from service import haproxy
from service.app import build
from service.errors import BadSettings, HostLost, NotReady, PortTaken
from service.orders import TextEvent, TextOrder
from service.questions import Question
from service.settings import Model, Server, Settings
from service.signals import stop_on_signals
from service.telemetry import log_as_json
from service.workbench import (
    SILENT_SECONDS,
    Adopted,
    Arrival,
    HostEvent,
    ImageOrder,
    LensOrder,
    assemble,
    open_home,
)

APPLICATION = "tiller"
GATEWAY = "gateway"
_SPEEDY = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_USE_GRPC_BY_DEFAULT")
_CARD_SECONDS, _FULL_SECONDS = 2.0, 2.0


class EngineReplica:
    """One hosted model in a process of its own."""

    def __init__(self, model: Model, settings: Settings) -> None:
        from service.hosts import host_of

        log_as_json()
        self.host = host_of(model, settings, open_home(settings))
        self.host.start()

    async def serve(
        self, order: ImageOrder | LensOrder | TextOrder
    ) -> AsyncIterator[HostEvent | TextEvent | Refusal]:
        """The host's events; a refusal is the last one, since exceptions change on the way."""
        from service.hosts import events_of

        try:
            async with aclosing(events_of(self.host, order)) as events:  # type: ignore[type-var]
                async for happened in events:
                    yield happened
        except Refusal as refusal:
            yield refusal

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Another method of the host; a refusal comes back as a value."""
        try:
            return await getattr(self.host, method)(*arguments)
        except Refusal as refusal:
            return refusal

    def check_health(self) -> None:
        """For Ray: the owner thread still gives signs."""
        if self.host.engine.heartbeat() > SILENT_SECONDS:
            raise RuntimeError(f"{self.host.name}: the owner thread hangs")

    async def drain(self, seconds: float) -> None:
        """Finish the rows, give the job back."""
        await asyncio.to_thread(self.host.close, seconds)


class RemoteHost:
    """A `Host` behind a Ray handle, for the gateway."""

    def __init__(self, model: Model, handle: Any) -> None:
        self.model, self.name, self.handle = model, model.name, handle
        self._card: Mapping[str, Any] | None = None
        self._lenses: dict[str | None, Lens] = {}

    async def card(self) -> Mapping[str, Any]:
        """As `Host`; asked once, then remembered."""
        if self._card is None:
            card: Mapping[str, Any] = await self._soon("card")
            self._card = card
        return self._card

    def draw(self, order: ImageOrder) -> AsyncIterator[HostEvent]:
        """As `Host`."""
        return self._events(order)

    def write(self, order: TextOrder) -> AsyncIterator[TextEvent]:
        """As `Host`."""
        return self._events(order)

    async def lens(self, encoder: str | None) -> Lens:
        """As `Host`; asked once per encoder that there is, then remembered."""
        if encoder not in self._lenses:
            self._lenses[encoder] = await self._soon("lens", encoder)
        return self._lenses[encoder]

    def look(self, order: LensOrder) -> AsyncIterator[HostEvent]:
        """As `Host`."""
        return self._events(order)

    async def _events(self, order: ImageOrder | LensOrder | TextOrder) -> AsyncIterator[Any]:
        events = self.handle.options(stream=True).serve.remote(order)
        try:
            async for happened in events:
                yield _or_raise(happened)
        except Refusal:
            raise
        except Exception as error:
            raise self._translated(error) from error
        finally:
            with suppress(Exception):  # a call that was never assigned says so once more
                events.cancel()

    async def check_fact(self, payload: Mapping[str, Any]) -> None:
        """As `Host`."""
        await self._ask("check_fact", payload)

    async def export(self, digest: str, form: Literal["peft", "diffusers"]) -> bytes:
        """As `Host`."""
        return await self._ask("export", digest, form)

    async def adopt(self, arrival: Arrival) -> Adopted:
        """As `Host`."""
        return await self._ask("adopt", arrival)

    async def answer(self, question: Question) -> Any:
        """As `Host`."""
        return await self._ask("answer", question)

    async def load(self) -> Mapping[str, Any]:
        """As `Host`."""
        return await self._soon("load")

    async def _soon(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(_CARD_SECONDS):
                return await self._ask(method, *arguments)
        except TimeoutError:
            raise NotReady(self.name) from None

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            answered = await self.handle.ask.remote(method, *arguments)
        except Exception as error:
            raise self._translated(error) from error
        return _or_raise(answered)

    def _translated(self, error: Exception) -> Exception:
        from ray.exceptions import RayActorError
        from ray.serve import exceptions

        if isinstance(error, exceptions.BackPressureError):
            return Full(self.model.max_waiting, _FULL_SECONDS)
        lost = (
            RayActorError,
            exceptions.DeploymentUnavailableError,
            exceptions.ReplicaUnavailableError,
        )
        return HostLost(self.name) if isinstance(error, lost) else error


def _or_raise(answered: Any) -> Any:
    if isinstance(answered, Refusal):
        raise answered
    return answered


class Gateway:
    """The REST application in a replica; `serve.ingress` takes the application from here."""

    def __init__(self, settings: Settings, handles: Mapping[str, Any]) -> None:
        log_as_json()
        hosts = {m.name: RemoteHost(m, handles[m.name]) for m in settings.models}
        self.bench = assemble(settings, open_home(settings), hosts)

    def __serve_build_asgi_app__(self) -> Any:
        """The application, built in the replica."""
        return build(self.bench, tells_ids=False)  # Ray adds the request's id to the answer

    def drain(self) -> None:
        """Admit nothing more; `/readyz` says 503."""
        self.bench.draining.set()


def environment(settings: Settings) -> tuple[dict[str, str], str]:
    """What Ray's processes must find in their environment, and which proxy that makes."""
    told = {
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        # Three checks of 5 s, Ray's own, are over before a busy machine has imported the proxy.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(int(settings.server.request_seconds) + 30),
        "OMP_NUM_THREADS": str(max(m.threads for m in settings.models)),
    }
    if haproxy.found() is None:
        return told, "Ray's own proxy (no HAProxy on this machine)"
    return {**told, **dict.fromkeys(_SPEEDY, "1")}, "HAProxy"


def on_this_machine(settings: Settings) -> tuple[dict[str, str], str]:
    """The same for one machine, whose processes meet on loopback only."""
    told, proxy = environment(settings)
    # Ray offers this for two other systems; it makes loopback the node's address on any.
    told["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    binary = haproxy.found()
    if binary is not None:
        told |= haproxy.on_loopback(binary, settings.home / "haproxy")
    return told, proxy


def application(settings: Settings) -> Any:
    """The gateway over an engine deployment per model, with every bound stated."""
    from ray import serve

    engines = {m.name: _engine(serve, m, settings) for m in settings.models}
    seconds = settings.server.request_seconds
    gateway: Any = serve.ingress()(Gateway)
    deployed: Any = serve.deployment(
        gateway,
        name=GATEWAY,
        num_replicas=settings.server.gateways,
        max_ongoing_requests=512,
        max_queued_requests=1024,
        backpressure_config={"status_code": 429, "retry_after_s": 2},
        max_surge_percent=100,
        health_check_period_s=10,
        graceful_shutdown_timeout_s=seconds,
        ray_actor_options={"num_cpus": 0.1},
    )
    return deployed.bind(settings, engines)


def on_cluster(told: dict[str, str]) -> Any:
    """The application for a cluster that somebody else started; `told["config"]` is the TOML file.

    `deploy/kuberay.yaml` names this builder; Ray calls it with the config's `args`.
    """
    return application(Settings.read(os.environ, Path(told["config"])))


def _engine(serve: Any, model: Model, settings: Settings) -> Any:
    return serve.deployment(
        EngineReplica,
        name=f"engine-{model.name}",
        num_replicas=model.replicas,
        max_ongoing_requests=model.slots + 2,
        max_queued_requests=model.max_waiting,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.server.drain_seconds,
        ray_actor_options={
            "num_cpus": model.cpus,
            "num_gpus": model.gpus,
            "memory": model.memory_bytes,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(model.threads)}},
        },
    ).bind(model, settings)


def start(settings: Settings) -> str:
    """Start Ray on this machine's loopback and serve; which proxy is used.

    Returns when every model is loaded.
    """
    told, proxy = on_this_machine(settings)
    os.environ.update(told)
    import ray
    from ray import serve

    wanted = sum(m.cpus * m.replicas for m in settings.models) + 0.1 * settings.server.gateways
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, int(wanted) + 1),
        include_dashboard=False,
        log_to_driver=False,
    )
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": settings.server.host,
            "port": settings.server.port,
            "request_timeout_s": settings.server.request_seconds,
        },
    )
    serve.run(application(settings), name=APPLICATION, route_prefix="/")
    return proxy


def stop_gently(settings: Settings) -> None:
    """503 at `/readyz`, no new work, wait for the rows, then take everything down."""
    import ray
    from ray import serve

    with suppress(Exception):
        gateway = serve.get_deployment_handle(GATEWAY, APPLICATION)
        gateway.broadcast("drain").results(timeout_s=5)
        for model in settings.models:
            engine = serve.get_deployment_handle(f"engine-{model.name}", APPLICATION)
            seconds = settings.server.drain_seconds
            engine.broadcast("drain", seconds).results(timeout_s=seconds + 5)
    serve.delete(APPLICATION)
    serve.shutdown()
    ray.shutdown()
    haproxy.end(settings.home / "haproxy")


def _free(server: Server) -> None:
    if server.port == 0:
        raise BadSettings("server.port", "Ray Serve needs a port number.")
    try:
        socket.create_server((server.host, server.port)).close()
    except OSError:
        raise PortTaken(f"{server.host}:{server.port}") from None


def serve(settings: Settings, stop: threading.Event, tell: Callable[[str], None]) -> None:
    """Serve until `stop` is set."""
    open_home(settings).close()  # refuse before Ray is started, not after
    _free(settings.server)
    address = f"http://{settings.server.host}:{settings.server.port}"
    tell("starting Ray Serve on this machine")
    started = time.monotonic()
    try:
        proxy = start(settings)
        stop_on_signals(stop)  # Ray took them
        names = ", ".join(m.name for m in settings.models)
        tell(f"Tiller on {address} behind {proxy}; models: {names}")
        tell(f"ready after {time.monotonic() - started:.0f} s")
        stop.wait()
        tell("draining")
    finally:
        stop_gently(settings)
