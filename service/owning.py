"""Work on the thread that owns a model, awaited by a handler."""

import asyncio
import functools
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from service.jobs import Ticket

T = TypeVar("T")


class Background(Protocol):
    """Hands a generator to the owner thread."""

    def __call__(
        self,
        work: Generator[Any, None, Any],
        on_item: Callable[[Any], None],
        on_done: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> Ticket:
        """Drain it between two rounds of the rows."""
        ...


async def drained(background: Background, work: Generator[Any, None, T]) -> T:
    """What the generator returns, drained on the owner thread; it ends if nobody waits."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[Any], None], what: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(lambda: ended.done() or settle(what))

    ticket = background(
        work,
        lambda _: None,
        functools.partial(tell, ended.set_result),
        functools.partial(tell, ended.set_exception),
    )
    try:
        return await ended
    finally:
        ticket.cancel()
