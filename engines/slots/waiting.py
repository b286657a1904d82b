"""Rows that have no place yet: bounded, first come first served."""

import threading
from collections import deque
from collections.abc import Sequence

from engines.slots.row import Row


class Waiting:
    """A waiting room; any thread.

    Args:
        lock: Of the engine: what it guards and the room change together.
    """

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._rows: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: Sequence[Row]) -> None:
        """At the end."""
        with self._lock:
            self._rows.extend(rows)

    def first(self, count: int) -> list[Row]:
        """Who comes next; they stay."""
        with self._lock:
            return [self._rows[i] for i in range(min(max(count, 0), len(self._rows)))]

    def take(self, rows: Sequence[Row]) -> None:
        """They leave."""
        with self._lock:
            for row in rows:
                self._rows.remove(row)

    def sweep(self) -> None:
        """Take out whoever was cancelled or is too late."""
        with self._lock:
            leaving = [(row, row.ending()) for row in self._rows]
            for row, ending in leaving:
                if ending is not None:
                    self._rows.remove(row)
                    row.ticket.hear(ending)

    def empty(self) -> list[Row]:
        """All leave."""
        with self._lock:
            rows, self._rows = list(self._rows), deque()
        return rows

    def tokens_asked(self) -> int:
        """Tokens that the rows may still write."""
        with self._lock:
            return sum(row.limit for row in self._rows)
