"""Threads of a host that wait for its model: few, freed when nobody waits for them any more."""

import asyncio
import threading
import time

import pytest

from engines.errors import DeadlineExceeded, Full
from service.owned import Turns, drained
from service.patience import Desk, Left, Patience


@pytest.fixture
def desk():
    made = Desk("test", threads=2, line=1)
    yield made
    made.close()


def never(patience):
    patience.wait(threading.Event().wait)


def eventually(holds):
    until = time.monotonic() + 5
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return holds()


def test_patience_ends_with_time_and_with_leaving():
    with pytest.raises(DeadlineExceeded):
        Patience(0.05).wait(threading.Event().wait)
    left = Patience()
    left.leave()
    with pytest.raises(Left):
        left.wait(threading.Event().wait)


def test_what_is_ready_is_not_waited_for():
    over = threading.Event()
    over.set()
    Patience(5.0).wait(over.wait)


def test_a_desk_answers_and_passes_errors_on(desk):
    assert asyncio.run(desk.run(lambda _: 3)) == 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(desk.run(lambda _: 1 / 0))


def test_who_leaves_frees_the_thread(desk):
    async def main():
        asked = [asyncio.ensure_future(desk.run(never)) for _ in range(3)]
        await asyncio.sleep(0.1)
        for one in asked:
            one.cancel()
        await asyncio.wait(asked)
        # Both threads were taken: an answer within the time says that they are free again.
        return await desk.run(lambda _: "free", 5.0)

    assert asyncio.run(main()) == "free"
    assert eventually(lambda: desk._inside == 0)


def test_the_line_is_bounded_and_its_time_counts(desk):
    async def main():
        asked = [asyncio.ensure_future(desk.run(never, 0.4)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(Full):
            await desk.run(lambda _: None)
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [type(one) for one in asyncio.run(main())] == [DeadlineExceeded] * 3


def test_waiting_for_a_turn_has_an_end_and_leaves_the_turn_alone():
    turns = Turns()
    with turns.turn("one"):
        with pytest.raises(DeadlineExceeded), turns.turn("one", Patience(0.05)):
            pass
        with turns.turn("other"):
            pass
    with turns.turn("one", Patience(1.0)):
        pass


def test_work_that_nobody_waits_for_is_cancelled():
    class Ticket:
        cancelled = False

        def cancel(self):
            self.cancelled = True

    ticket = Ticket()
    with pytest.raises(DeadlineExceeded):
        drained(lambda *_: ticket, iter(()), Patience(0.05))
    assert ticket.cancelled
