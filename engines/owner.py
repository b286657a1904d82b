"""The one thread of a model.

Nobody else calls a forward. Between two rounds of work the thread takes one item from one of the
generators that were handed to it (fits), and it shows that it lives.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from engines.errors import Draining, refusal_of
from models.errors import Refusal

_log = logging.getLogger(__name__)
_IDLE_SECONDS = 0.5


@runtime_checkable
class Work(Protocol):
    """What the owner thread does."""

    def busy(self) -> bool:
        """Whether another round is wanted."""
        ...

    def round(self) -> None:
        """One round; short, since cancels are looked at in between."""
        ...

    def end(self, why: Refusal | None) -> None:
        """The thread ends: tell everybody who still waits; with a reason if it died."""
        ...


@dataclass(eq=False)
class Background:
    """A generator that is drained between rounds."""

    work: Generator[Any, None, Any]
    on_item: Callable[[Any], None]
    on_done: Callable[[Any], None]
    on_error: Callable[[BaseException], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """Close the generator before its next item; no callback is called then."""
        self.cancelled = True


class Owner:
    """Runs rounds of work on one thread until it is stopped.

    Args:
        name: Of the thread.
        work: What it does.
        threads: Of torch, for this thread.
    """

    def __init__(self, name: str, work: Work, threads: int) -> None:
        self.work, self.threads = work, threads
        self.wake = threading.Condition()
        self.lost: Refusal | None = None
        self._background: deque[Background] = deque()
        self._stopped = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._own, name=name, daemon=True)

    def start(self) -> None:
        """Begin; apart from construction, so that the work can be whole before its first round."""
        self._thread.start()

    def notify(self) -> None:
        """There may be something to do."""
        with self.wake:
            self.wake.notify_all()

    def background(self, task: Background) -> None:
        """Drain the generator on this thread; Draining if the thread is about to end."""
        with self.wake:
            if self._stopped or self.lost is not None:
                raise self.lost or Draining()
            self._background.append(task)
            self.wake.notify_all()

    def beat(self) -> None:
        """A sign of life inside a long round."""
        self._beat = time.monotonic()

    def heartbeat(self) -> float:
        """Seconds since the thread last gave a sign; infinite if it is dead."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Wait until `done`, which is asked after every round; False if it took too long."""
        with self.wake:
            return self.wake.wait_for(lambda: done() or self.lost is not None, seconds) and done()

    def stop(self) -> None:
        """End the thread after its round."""
        with self.wake:
            self._stopped = True
            self.wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)

    def _own(self) -> None:
        torch.set_num_threads(self.threads)
        try:
            while not self._stopped:
                self._sleep()
                self.work.round()
                self._one_item()
                self.notify()
        except BaseException as broken:  # noqa: BLE001 - told to everybody who waits
            _log.exception("The owner thread died")
            self.lost = refusal_of(broken)
        finally:
            self._end()

    def _sleep(self) -> None:
        """Until there is something to do; the heart beats meanwhile."""
        with self.wake:
            self._beat = time.monotonic()
            while not (self._stopped or self._background or self.work.busy()):
                self.wake.wait(timeout=_IDLE_SECONDS)
                self._beat = time.monotonic()

    def _one_item(self) -> None:
        if not self._background:
            return
        task = self._background.popleft()
        try:
            if task.cancelled:
                task.work.close()
                return
            task.on_item(next(task.work))
            self._background.append(task)
        except StopIteration as over:
            _call(task.on_done, over.value)
        except Exception as broken:  # noqa: BLE001 - a fit that fails is reported, not fatal
            _call(task.on_error, broken)
        except BaseException as fatal:
            _call(task.on_error, fatal)
            raise

    def _end(self) -> None:
        with self.wake:
            self._stopped = True
            left, self._background = self._background, deque()
        self.work.end(self.lost)
        for task in left:
            task.work.close()
            _call(task.on_error, self.lost or Draining())
        self.notify()


def _call(tell: Callable[[Any], None], what: object) -> None:
    """A listener that breaks must not take the thread with it."""
    try:
        tell(what)
    except Exception:  # noqa: BLE001 - as said
        _log.exception("A listener broke")
