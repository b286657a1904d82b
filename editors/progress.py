"""What long work says while it goes on: shared by every floor, told here to editors."""

from models.progress import Progress

__all__ = ["Progress"]
