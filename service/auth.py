"""Who calls, for which tenant, and how much they may: keys, scopes, quotas."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from limits import RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from service.errors import KeyNeeded, QuotaUsed, ScopeMissing
from service.registry import Registry
from service.schema import SCOPES
from service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Principal:
    """A caller: the tenant whose names they use, and what they may do."""

    tenant: str
    scopes: frozenset[str]
    name: str
    """Goes into the audit; never a secret."""


EVERYBODY = Principal(tenant="default", scopes=frozenset(SCOPES), name="local")
"""Whoever reaches a keyless service: it listens on loopback only, behind `service.door`."""


@dataclass(frozen=True, kw_only=True)
class Doorman:
    """Knows the keys and counts the quotas."""

    settings: Settings
    registry: Registry
    limiter: SlidingWindowCounterRateLimiter = field(init=False)

    def __post_init__(self) -> None:
        where = self.settings.quotas.storage.removeprefix("async+")
        storage = storage_from_string(f"async+{where}")
        object.__setattr__(self, "limiter", SlidingWindowCounterRateLimiter(storage))

    async def admit(self, request: Request) -> Principal:
        """Who calls.

        Raises:
            KeyNeeded: A key is needed and none, or a wrong, expired or revoked one, was sent.
        """
        if self.settings.keyless:
            return EVERYBODY
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise KeyNeeded("No API key was sent.")
        key = await asyncio.to_thread(self.registry.keys.verify, secret.strip())
        if key is None:
            raise KeyNeeded("The API key is not valid: unknown, expired or revoked.")
        return Principal(tenant=key.tenant, scopes=frozenset(key.scopes), name=f"key:{key.id}")

    async def count(self, principal: Principal, what: str, amount: int = 1) -> dict[str, str]:
        """Use up some of a minute's quota; the headers that tell what is left.

        Args:
            principal: Whose.
            what: `requests` or `images`.
            amount: How many.

        Raises:
            QuotaUsed: Nothing is used up then.
        """
        limit: int = getattr(self.settings.quotas, f"{what}_a_minute")
        if not limit:
            return {}
        item, whose = RateLimitItemPerMinute(limit), (what, principal.tenant, principal.name)
        admitted = await self.limiter.hit(item, *whose, cost=amount)
        window = await self.limiter.get_window_stats(item, *whose)
        wait = max(1, math.ceil(window.reset_time - time.time()))
        if not admitted:
            raise QuotaUsed(what, limit, wait)
        return {
            f"x-ratelimit-limit-{what}": str(limit),
            f"x-ratelimit-remaining-{what}": str(window.remaining),
            f"x-ratelimit-reset-{what}": f"{wait}s",
        }


def needs(scope: str) -> Callable[[Request], Coroutine[Any, Any, Principal]]:
    """A dependency: the caller, who has the scope and some quota left."""

    async def caller(request: Request) -> Principal:
        doorman: Doorman = request.app.state.workbench.doorman
        principal = await doorman.admit(request)
        if scope not in principal.scopes:
            raise ScopeMissing(scope)
        tell(request, await doorman.count(principal, "requests"))
        request.state.tenant, request.state.caller = principal.tenant, principal.name
        return principal

    caller.__dict__["scope"] = scope
    return caller


def scope_of(route: APIRoute) -> str | None:
    """The scope that a route needs; None where anybody may call it."""
    needed = [getattr(part.call, "scope", None) for part in route.dependant.dependencies]
    return next((scope for scope in needed if scope), None)


def tell(request: Request, headers: dict[str, str]) -> None:
    """Add headers to whatever the answer will be."""
    request.scope.setdefault("tiller.headers", {}).update(headers)
