"""Many rows of one caller, admitted in chunks so that they do not starve anybody.

A sweep over a text encoder's layers is thirty rows. Queued all at once they would fill the waiting
room, and whoever came next would wait for every one of them. So no more rows than there are slots
are with the engine; each that ends lets the next one in, behind those who wait by then. Another
caller therefore waits for one picture, not for the sweep.
"""

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from engines.diffusion import DiffusionEngine, Ticket
from engines.errors import DeadlineExceeded, Full
from engines.request import LAST, Event, ImageRequest

_PATIENCE = 0.1
"""Seconds until a full engine is asked again, if no row of ours is there to give up its slot."""


class Sweep:
    """The events of many rows, as (index of the row, event); leaving the block cancels the rows.

    Args:
        engine: Draws them.
        requests: The rows, in the order in which they are admitted. Their `seconds` count from the
            beginning of the sweep.
    """

    def __init__(self, engine: DiffusionEngine, requests: Sequence[ImageRequest]) -> None:
        self.engine = engine
        self.chunk = max(1, min(engine.slots, engine.max_waiting))
        self._left = deque(enumerate(requests))
        self._inside: dict[int, Ticket] = {}
        self._events = asyncio.Queue[tuple[int, Event]]()
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()

    def __enter__(self) -> "Sweep":
        """Admit the first chunk; what the engine refuses is raised here, and nothing has begun."""
        self._admit()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.clear()
        for ticket in self._inside.values():
            ticket.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while self._inside or self._left:
            if not self._inside:  # others took all the room while our last row ended
                await asyncio.sleep(_PATIENCE)
                self._admit_if_there_is_room()
                continue
            index, event = await self._events.get()
            if isinstance(event, LAST):
                del self._inside[index]
                self._admit_if_there_is_room()
            yield index, event

    def _admit_if_there_is_room(self) -> None:
        with suppress(Full):
            self._admit()

    def _admit(self) -> None:
        """Fill the chunk up; all of the rows that are missing, or none."""
        missing = min(self.chunk - len(self._inside), len(self._left))
        if not missing:
            return
        rows = [self._left[i] for i in range(missing)]
        asked = [(self._in_time(row), functools.partial(self._tell, i)) for i, row in rows]
        tickets = self.engine.submit_together(asked)
        for (index, _), ticket in zip(rows, tickets, strict=True):
            self._left.popleft()
            self._inside[index] = ticket

    def _in_time(self, row: ImageRequest) -> ImageRequest:
        """With the time that is left of the sweep's."""
        left = row.seconds - (time.monotonic() - self._began)
        if left <= 0:
            raise DeadlineExceeded(row.seconds)
        return replace(row, seconds=left)

    def _tell(self, index: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
