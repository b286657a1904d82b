"""The texts of one caller while an engine writes them: events by row, gathered, cancelled at once.

A token is a fraction of a millisecond's work for a small model, and each item that crosses a
process costs as much: what comes within some milliseconds is told together, but the first words
and the end of a text at once.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from types import TracebackType

from engines.slots.engine import LanguageEngine
from engines.slots.request import LAST, Event, Generation, Queued, Token
from engines.slots.row import Ticket

GATHER_SECONDS = 0.03


class Texts:
    """The events of many texts, in bundles of (request, event); leaving the block frees the rows.

    Args:
        engine: Writes them.
        requests: All of them are admitted, or none.
        tokens: Whether tokens are told, or only how each text ended.
    """

    def __init__(
        self, engine: LanguageEngine, requests: Sequence[Generation], *, tokens: bool
    ) -> None:
        self.engine, self.requests, self.tokens = engine, requests, tokens
        self._loop = asyncio.get_running_loop()
        self._tickets: list[Ticket] = []
        self._heard: list[tuple[int, Event]] = []
        self._something, self._ending = asyncio.Event(), asyncio.Event()
        self._left = sum(request.n for request in requests)
        self._over = False

    async def __aenter__(self) -> "Texts":
        """Admit everything; what the engine refuses is raised here, and nothing goes on."""
        try:
            await asyncio.to_thread(self._submit)
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

    async def bundles(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """What happened since the last bundle, until every text has ended."""
        first = True
        while self._left:
            await self._something.wait()
            if not first:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), GATHER_SECONDS)
            first = False
            self._something.clear()
            self._ending.clear()
            bundle, self._heard = self._heard, []
            self._left -= sum(isinstance(event, LAST) for _, event in bundle)
            yield bundle

    def _submit(self) -> None:
        """On a thread: prompts are checked and rows are made."""
        for place, request in enumerate(self.requests):
            ticket = self.engine.submit(request, functools.partial(self._tell, place))
            self._tickets.append(ticket)
            if self._over:
                ticket.cancel()

    def _leave(self) -> None:
        self._over = True
        for ticket in list(self._tickets):
            ticket.cancel()

    # --- on the owner thread ----------------------------------------------------------------------

    def _tell(self, place: int, event: Event) -> None:
        if isinstance(event, Queued) or (isinstance(event, Token) and not self.tokens):
            return
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._hear, place, event)

    def _hear(self, place: int, event: Event) -> None:
        self._heard.append((place, event))
        self._something.set()
        if isinstance(event, LAST):
            self._ending.set()
