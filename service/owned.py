"""Short work on the thread that owns a model, asked for by a thread that waits for it."""

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from service.jobs import Outcome
from service.owning import Background
from service.patience import ENDLESS, Patience

T = TypeVar("T")


def drained(
    background: Background, work: Generator[Any, None, T], patience: Patience = ENDLESS
) -> T:
    """What the generator returns; never to be called on the owner thread itself.

    Args:
        background: Who drains it.
        work: Is closed if nobody waits any more.
        patience: Of who waits for it.

    Raises:
        DeadlineExceeded, Left: The patience ended; so does the work.
        Exception: What the work raised.
    """
    outcome = Outcome()
    ticket = background(work, lambda _: None, outcome.done, outcome.failed)
    try:
        patience.wait(outcome.over.wait)
    finally:
        ticket.cancel()
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def at_once(work: Callable[[], T]) -> Generator[Any, None, T]:
    """A function as work of one step."""
    return work()
    yield


class Turns:
    """One lock per key, so that two who want the same thing do it once; forgotten when unused."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Any, tuple[threading.Lock, int]] = {}

    @contextmanager
    def turn(self, key: Any, patience: Patience = ENDLESS) -> Iterator[None]:
        """Wait until nobody else has the key, and have it for the length of the block.

        Raises:
            DeadlineExceeded, Left: The patience ended before.
        """
        with self._lock:
            lock, users = self._held.get(key, (threading.Lock(), 0))
            self._held[key] = (lock, users + 1)
        try:
            patience.wait(lambda seconds: lock.acquire(timeout=seconds))
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._lock:
                _, users = self._held[key]
                self._held[key] = (lock, users - 1)
                if users == 1:
                    del self._held[key]
