"""Things kept by content: byte-bounded, least recently used first out, verified on the way in."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from engines.errors import EngineFailed

T = TypeVar("T")


class Kept(Generic[T]):
    """A least-recently-used cache bounded in bytes; safe to use from several threads."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0
        self.hits = self.misses = 0
        self._entries: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> T | None:
        """The entry, or None; counts hits and misses."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: str, value: T, size: int) -> None:
        """Keep the entry; what is larger than the whole cache is not kept."""
        with self._lock:
            if key in self._entries:
                self.used -= self._entries.pop(key)[1]
            if size > self.capacity:
                return
            self._entries[key] = (value, size)
            self.used += size
            while self.used > self.capacity:
                self.used -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        """Whether it is kept; nobody counts that, and it grows no younger by it."""
        return key in self._entries


class DigestStore(Generic[T]):
    """Objects made from blobs that a function fetches; each blob must hash to its digest."""

    def __init__(
        self, fetch: Callable[[str], bytes], read: Callable[[bytes], T], capacity: int
    ) -> None:
        self.fetch, self.read, self.kept = fetch, read, Kept[T](capacity)

    def get(self, digest: str) -> T:
        """The object of that digest; EngineFailed if the blob is not what its name says."""
        found = self.kept.get(digest)
        if found is None:
            data = self.fetch(digest)
            if hashlib.sha256(data).hexdigest() != digest:
                raise EngineFailed(f"The blob {digest[:16]} does not have the content of its name.")
            found = self.read(data)
            self.kept.put(digest, found, len(data))
        return found
