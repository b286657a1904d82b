"""What a method is, and how methods are found: by being there."""

import importlib
import pkgutil
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of every editor and steerer: frozen settings, which are the method."""


def discover(package: ModuleType, name: str = "METHOD", group: str | None = None) -> dict[str, type]:
    """The `METHOD` of each module of the package, by its kind; and those of the entry points."""
    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        method = getattr(importlib.import_module(module.name), name)
        found[method.kind] = method
    for entry in entry_points(group=group) if group else ():
        method = entry.load()
        found[method.kind] = method
    return dict(sorted(found.items()))
