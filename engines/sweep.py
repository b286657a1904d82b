"""Many rows of one caller, admitted in chunks so that they do not starve anybody.

A sweep over a text encoder's layers is thirty rows. Queued all at once they would fill the waiting
room, and whoever came next would wait for every one of them. So no more rows than there are slots
are with the engine; each that ends lets the next one in, behind those who wait by then. Another
caller therefore waits for one picture, not for the sweep.

The first chunk is admitted whole or not at all: a small order joins at once, a busy engine refuses
before anything has begun. Afterwards a row takes any place that is free: beside steady callers
there are hardly ever several at a time.
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
"""Seconds until a full engine is asked again; one of our rows that ends asks at once."""


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
        self._began = self._asked = time.monotonic()
        self._over = False

    async def __aenter__(self) -> "Sweep":
        """Admit the first chunk; what the engine refuses is raised here, and nothing has begun."""
        try:
            await asyncio.to_thread(self._admit_chunk)
        except BaseException:  # cancelled while the thread went on: its rows leave too
            self._leave()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        while self._inside or self._left:
            told = await self._told()
            ended = told is not None and isinstance(told[1], LAST)
            if told is not None and ended:
                del self._inside[told[0]]
            if self._missing and (ended or self._patience() <= 0):
                await self._admit_what_fits()
            if told is not None:
                yield told

    @property
    def _missing(self) -> int:
        """How many rows could be with the engine and are not."""
        return min(self.chunk - len(self._inside), len(self._left))

    def _patience(self) -> float:
        """Seconds until the engine is asked again."""
        return self._asked + _PATIENCE - time.monotonic()

    async def _told(self) -> tuple[int, Event] | None:
        """The next event; None if it is time to ask the engine again before there is one."""
        if not self._missing:
            return await self._events.get()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience()):
                return await self._events.get()
        return None

    async def _admit_what_fits(self) -> None:
        self._asked = time.monotonic()
        self._in_time(self._left[0][1])
        if int(self.engine.load()["waiting"]) < self.engine.max_waiting:
            await asyncio.to_thread(self._admit_one_by_one)

    # --- on a thread: prompts are tokenised and schedulers are copied. Nobody else touches the
    # rows meanwhile; whoever leaves says so first and cancels then, so no ticket slips through.

    def _admit_chunk(self) -> None:
        """The first rows, all or none."""
        rows = [self._left[i] for i in range(self._missing)]
        asked = [(self._in_time(row), functools.partial(self._tell, i)) for i, row in rows]
        for ticket in self.engine.submit_together(asked):
            self._take(ticket)

    def _admit_one_by_one(self) -> None:
        """As many of the missing rows as there are places."""
        with suppress(Full):
            while self._missing and not self._over:
                index, row = self._left[0]
                tell = functools.partial(self._tell, index)
                self._take(self.engine.submit(self._in_time(row), tell))

    def _take(self, ticket: Ticket) -> None:
        """The ticket of the row that was next."""
        self._inside[self._left.popleft()[0]] = ticket
        if self._over:
            ticket.cancel()

    def _leave(self) -> None:
        self._over = True
        for ticket in list(self._inside.values()):
            ticket.cancel()

    # --- on any thread ----------------------------------------------------------------------------

    def _in_time(self, row: ImageRequest) -> ImageRequest:
        """With the time that is left of the sweep's."""
        left = row.seconds - (time.monotonic() - self._began)
        if left <= 0:
            raise DeadlineExceeded(row.seconds)
        return replace(row, seconds=left)

    def _tell(self, index: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
