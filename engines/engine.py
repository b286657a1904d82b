"""What all engines are: the work of one hosted model, on a thread of its own, until they close."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any

from engines.errors import Draining, EngineFailed
from engines.owner import Background, Owner
from models.errors import Refusal


class Engine(ABC):
    """Takes rows from any thread and works on them on its own; `_owner.start()` begins.

    Args:
        name: Of the model.
        threads: Of torch in the owner thread.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._draining = False
        self._owner = Owner(f"owner-{name}", self, threads)

    @abstractmethod
    def busy(self) -> bool:
        """Whether a row is worked on or waits."""

    @abstractmethod
    def round(self) -> None:
        """Rows that are over leave, waiting ones join, everybody goes one step on."""

    @abstractmethod
    def end(self, why: Refusal | None) -> None:
        """Tell everybody that nothing comes any more."""

    def background(
        self,
        work: Generator[Any, None, Any],
        on_item: Callable[[Any], None],
        on_done: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> Background:
        """Drain a generator on the owner thread, one item between two steps."""
        if self._draining:
            raise Draining
        task = Background(work, on_item, on_done, on_error)
        self._owner.background(task)
        return task

    def heartbeat(self) -> float:
        """Seconds since the owner thread last gave a sign; infinite if it is dead."""
        return self._owner.heartbeat()

    def drain(self, seconds: float) -> bool:
        """Take nothing new, wait for the rows; True if all were finished in time."""
        with self._owner.wake:
            self._draining = True
        return self._owner.wait(lambda: not self.busy(), seconds)

    def stop(self) -> None:
        """End the thread; rows that are still worked on are cancelled."""
        with self._owner.wake:
            self._draining = True
        self._owner.stop()

    def _check_open(self) -> None:
        """Under the lock: EngineFailed or Draining, where no row would be worked on."""
        if self._owner.lost is not None:
            raise EngineFailed(f"The engine is down: {self._owner.lost}")
        if self._draining:
            raise Draining
