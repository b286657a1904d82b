"""The registry: versions that never change, names that move, and the jobs between them."""

from service.registry.registry import Registry, open_registry

__all__ = ["Registry", "open_registry"]
