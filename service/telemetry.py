"""One log line and a few numbers per request. No prompts, no names of edits, no secrets."""

import logging
import re
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Crashed
from service.problems import answer

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_VALID_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """The numbers of one gateway process; `/metrics` shows them."""

    numbers: CollectorRegistry = field(default_factory=CollectorRegistry)
    requests: Counter = field(init=False)
    seconds: Histogram = field(init=False)
    images: Counter = field(init=False)
    tokens: Counter = field(init=False)
    rows: Gauge = field(init=False)

    def __post_init__(self) -> None:
        made = {
            "requests": Counter(
                "tiller_requests",
                "Requests answered.",
                ["method", "route", "status"],
                registry=self.numbers,
            ),
            "seconds": Histogram(
                "tiller_request_seconds",
                "From the first byte in to the last byte out.",
                ["method", "route"],
                buckets=_SECONDS,
                registry=self.numbers,
            ),
            "images": Counter(
                "tiller_images", "Pictures drawn.", ["model", "edited"], registry=self.numbers
            ),
            "tokens": Counter(
                "tiller_tokens",
                "Tokens that language models read and wrote.",
                ["model", "steered", "what"],
                registry=self.numbers,
            ),
            "rows": Gauge(
                "tiller_engine", "What an engine tells.", ["model", "what"], registry=self.numbers
            ),
        }
        for name, instrument in made.items():
            object.__setattr__(self, name, instrument)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.numbers)


class Observed:
    """ASGI: gives each request an id, counts it, logs a line, turns a crash into an answer."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, *, tells_ids: bool) -> None:
        self.app, self.telemetry, self.tells_ids = app, telemetry, tells_ids
        self.log = structlog.get_logger("tiller.request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        scope.setdefault("state", {})["request_id"] = request_id(Headers(scope=scope))
        scope["tiller.headers"] = {}

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if self.tells_ids:
                    headers["X-Request-Id"] = scope["state"]["request_id"]
                for key, value in scope["tiller.headers"].items():
                    headers.setdefault(key, value)
            await send(message)

        try:
            await self.app(scope, receive, observed)
        except Exception:
            self.log.exception("crashed", request_id=scope["state"]["request_id"])
            if not status:
                await answer(Request(scope), Crashed())(scope, receive, observed)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "-")
        state: dict[str, Any] = scope["state"]
        self.telemetry.requests.labels(scope["method"], route, str(status)).inc()
        self.telemetry.seconds.labels(scope["method"], route).observe(seconds)
        self.log.info(
            "request",
            method=scope["method"],
            route=route,
            status=status,
            ms=round(1000 * seconds, 1),
            request_id=state["request_id"],
            tenant=state.get("tenant"),
            caller=state.get("caller"),
            trace=_trace(Headers(scope=scope).get("traceparent", "")),
        )


def request_id(headers: Headers) -> str:
    """The caller's X-Request-Id if it is a decent one, else a new UUIDv7."""
    told = headers.get("x-request-id", "")
    return told if _VALID_ID.match(told) else str(uuid7())


def uuid7() -> uuid.UUID:
    """RFC 9562: 48 bits of milliseconds, then 74 random ones."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    return uuid.UUID(int=value | 0b10 << 62 | secrets.randbits(62))


def _trace(traceparent: str) -> str | None:
    parts = traceparent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


def log_as_json(level: int = logging.INFO) -> None:
    """Send structlog's lines to standard error as JSON; called once by a process' main."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(_stderr()),
    )


def _stderr() -> Any:
    import sys

    return sys.stderr
