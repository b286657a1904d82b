"""Params of evaluations as they are written, before a kind reads them: for service, SDK and CLI."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

METHODS: Mapping[str, str] = {"eap-ig": "eap-ig-inputs", "ifr": "information-flow-routes"}
"""Short names of a circuit's methods."""


def spelled_out(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same with a method's short name in full."""
    method = params.get("method")
    full = METHODS.get(method, method) if isinstance(method, str) else method
    return {**params, "method": full} if "method" in params else dict(params)


def not_finite(told: Any, path: str = "params") -> Iterator[str]:
    """Paths of numbers that are none or infinite, as JSON has none but Python reads them."""
    if isinstance(told, float) and not math.isfinite(told):
        yield path
    if isinstance(told, Mapping):
        for key, value in told.items():
            yield from not_finite(value, f"{path}.{key}")
    if isinstance(told, list | tuple):
        for i, value in enumerate(told):
            yield from not_finite(value, f"{path}.{i}")
