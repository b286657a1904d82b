"""What a method is, and how methods are found: by being there."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of every editor and steerer: frozen settings, which are the method.

    A subclass adds the field `kind: Literal["its_name"] = "its_name"`, by which it is known.
    """


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    """Every module of a package, imported, in the order of their names."""
    for found in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        yield importlib.import_module(f"{package.__name__}.{found}")


def discover(package: ModuleType, group: str | None = None) -> dict[str, type[Any]]:
    """The `METHOD` of each module of the package, by its kind; and those of the entry points."""
    found: dict[str, type[Any]] = {m.METHOD.kind: m.METHOD for m in modules_of(package)}
    for entry in entry_points(group=group) if group else ():
        method = entry.load()
        found[method.kind] = method
    return dict(sorted(found.items()))
