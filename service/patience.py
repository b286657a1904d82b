"""How long somebody waits: until a time, and not beyond their own leaving; and threads to wait on.

Threads that wait for a model's owner would, in the pool that everybody shares, keep requests from
it that have nothing to do with that model. So every host has a few of its own.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from engines.errors import DeadlineExceeded, Full

T = TypeVar("T")
_LOOK_SECONDS = 0.05
"""How often a thread that waits looks whether somebody still waits for it."""
_AHEAD_SECONDS = 1.0
"""What one who finds no place is told to wait, for each who is in front."""


class Left(Exception):
    """Nobody waits for the result any more."""


class Patience:
    """Of one request.

    Args:
        seconds: How long it waits from now on; None as long as it takes.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._until = None if seconds is None else time.monotonic() + seconds
        self._left = threading.Event()

    def leave(self) -> None:
        """Nobody waits any more: threads that wait for this stop."""
        self._left.set()

    @property
    def remaining(self) -> float | None:
        """Seconds that are left; None for no bound."""
        return None if self._until is None else self._until - time.monotonic()

    def check(self) -> None:
        """Raise if there is nothing to wait for.

        Raises:
            DeadlineExceeded: The time is over.
            Left: Nobody waits.
        """
        if self._left.is_set():
            raise Left
        if self.seconds is not None and (self.remaining or 0.0) <= 0:
            raise DeadlineExceeded(self.seconds, "answer", "features")

    def wait(self, ready: Callable[[float], bool]) -> None:
        """Until `ready` says so; it is given the seconds that it may take to look.

        Raises:
            DeadlineExceeded, Left: As of `check`.
        """
        self.check()
        while not ready(_LOOK_SECONDS):
            self.check()


ENDLESS = Patience()
"""Of work that nobody leaves, a job's."""


class Desk:
    """A few threads of one host, and a bounded line in front of them.

    Args:
        name: Of the threads.
        threads: How many there are.
        line: How many may wait for one; who comes later is refused.
    """

    def __init__(self, name: str, threads: int, line: int) -> None:
        self.threads, self.line = threads, line
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._inside = 0

    async def run(self, work: Callable[[Patience], T], seconds: float | None = None) -> T:
        """What `work` returns, on one of the threads; cancelled, its patience has ended.

        Raises:
            Full: So many wait already.
            DeadlineExceeded: It took longer than so many seconds, the line included.
        """
        patience = Patience(seconds)
        self._enter()
        try:
            future = self._pool.submit(self._worked, work, patience)
        except BaseException:
            self._leave()
            raise
        future.add_done_callback(lambda _: self._leave())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError:
            raise DeadlineExceeded(seconds or 0.0, "answer", "features") from None
        finally:
            patience.leave()

    def close(self) -> None:
        """Take no more work."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _worked(self, work: Callable[[Patience], T], patience: Patience) -> T:
        patience.check()
        return work(patience)

    def _enter(self) -> None:
        with self._lock:
            ahead = self._inside - self.threads
            if ahead >= self.line:
                raise Full(ahead, _AHEAD_SECONDS * ahead)
            self._inside += 1

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
