"""Rows of one caller, admitted in chunks."""

import asyncio
import functools
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from engines.diffusion import DiffusionEngine
from engines.errors import BadRow, DeadlineExceeded, Draining, Full
from engines.request import LAST, Failed, Finished, ImageRequest
from engines.sweep import Sweep


def a_row(i, **changes):
    stated = {"id": f"row-{i}", "prompt": "a red cat", "seed": i, "steps": 4}
    return ImageRequest(**(stated | changes))


@pytest.fixture
def engine(tiny_sd):
    made = DiffusionEngine(tiny_sd, slots=3, max_waiting=4)
    yield made
    made.stop()


async def finished(sweep):
    """The indices in the order in which their rows ended, and their last events."""
    return {index: event async for index, event in sweep if isinstance(event, LAST)}


def test_every_row_is_drawn_and_none_before_its_turn(engine):
    async def main():
        async with Sweep(engine, [a_row(i) for i in range(11)]) as sweep:
            most, ends = 0, {}
            async for index, event in sweep:
                most = max(most, len(sweep._inside))
                if isinstance(event, Finished):
                    ends[index] = event
            return most, ends

    most, ends = asyncio.run(main())
    assert sorted(ends) == list(range(11))
    assert [ends[i].seed for i in range(11)] == list(range(11))
    assert most == 3


def test_rows_of_a_chunk_join_at_once(engine):
    async def main():
        async with Sweep(engine, [a_row(i) for i in range(3)]) as sweep:
            return await finished(sweep)

    assert {end.slot for end in asyncio.run(main()).values()} == {0, 1, 2}


def test_another_caller_waits_for_one_picture_and_not_for_the_sweep(engine):
    async def other():
        await asyncio.sleep(0)
        async for event in engine.stream(a_row(99)):
            if isinstance(event, Finished):
                return time.monotonic()
        raise AssertionError(event)

    async def main():
        waiting, over = None, []
        async with Sweep(engine, [a_row(i, steps=20) for i in range(15)]) as sweep:
            async for _, event in sweep:
                waiting = waiting or asyncio.ensure_future(other())
                if isinstance(event, Finished):
                    over.append(time.monotonic())
            return await waiting, over

    arrived, over = asyncio.run(main())
    assert sum(moment < arrived for moment in over) <= 8


def test_a_sweep_that_is_left_frees_its_rows(engine):
    async def main():
        async with Sweep(engine, [a_row(i, steps=200) for i in range(9)]) as sweep:
            async for _ in sweep:
                break

    asyncio.run(main())
    assert engine.drain(5.0)
    assert engine.load()["active"] == engine.load()["waiting"] == 0


def test_what_the_engine_refuses_is_raised_before_anything_has_begun(engine):
    async def main(rows):
        async with Sweep(engine, rows):
            raise AssertionError("it began")

    with pytest.raises(BadRow):
        asyncio.run(main([a_row(0), a_row(1, steps=0)]))
    assert engine.load()["active"] == engine.load()["waiting"] == 0


def test_a_full_engine_is_refused_at_the_beginning_and_waited_for_in_the_middle(tiny_sd):
    engine = DiffusionEngine(tiny_sd, slots=2, max_waiting=2)

    async def main():
        async with Sweep(engine, [a_row(i) for i in range(6)]) as sweep:
            others = []
            ends = {}
            async for index, event in sweep:
                if isinstance(event, Finished):
                    ends[index] = event
                    if not others:  # somebody takes the whole waiting room
                        others = [
                            asyncio.ensure_future(_drained(engine, a_row(50 + i, steps=30)))
                            for i in range(2)
                        ]
                        await asyncio.sleep(0.01)
            await asyncio.gather(*others)
            return ends

    async def full():
        held = [asyncio.ensure_future(_drained(engine, a_row(i, steps=300))) for i in range(4)]
        await asyncio.sleep(0.2)
        with pytest.raises(Full):
            async with Sweep(engine, [a_row(9)] * 2):
                pass
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    try:
        assert sorted(asyncio.run(main())) == list(range(6))
        asyncio.run(full())
    finally:
        engine.stop()


async def _drained(engine, row):
    while True:
        try:
            async for _ in engine.stream(row):
                pass
        except Full:
            await asyncio.sleep(0.02)
        else:
            return


def test_the_time_counts_from_the_beginning_of_the_sweep(engine):
    async def main():
        rows = [replace(a_row(i, steps=200), seconds=0.4) for i in range(9)]
        async with Sweep(engine, rows) as sweep:
            return await finished(sweep)

    try:
        ends = asyncio.run(main())
    except DeadlineExceeded:
        return
    assert isinstance(ends[0], Failed) and isinstance(ends[0].why, DeadlineExceeded)


class Steady:
    """Callers who ask again at once: whoever has no row takes the next place that comes free."""

    def __init__(self, engine, callers):
        self.engine, self.join = engine, engine._join
        self.idle, self.drawn = list(range(callers)), []
        engine._join = self.join_and_ask

    def join_and_ask(self):
        with self.engine._owner.wake:  # before anybody else sees the room
            self.join()
            with suppress(Full, Draining):
                while self.idle:
                    i = self.idle[0]
                    self.engine.submit(a_row(100 + i), functools.partial(self.hear, i))
                    self.idle.remove(i)

    def hear(self, i, event):
        if isinstance(event, LAST):
            self.idle.append(i)
            self.drawn.append(i)


def test_a_sweep_beside_steady_callers_gets_its_pictures(tiny_sd):
    """Seven callers leave one place of eight: all of a chunk at once would never fit again."""
    engine = DiffusionEngine(tiny_sd, slots=4, max_waiting=4)

    async def main():
        rows = [replace(a_row(i), seconds=60.0) for i in range(12)]
        async with Sweep(engine, rows) as sweep:
            steady = Steady(engine, 7)
            return await finished(sweep), list(steady.drawn)

    try:
        ends, drawn = asyncio.run(main())
    finally:
        engine.stop()
    assert sorted(ends) == list(range(12))
    assert all(isinstance(end, Finished) for end in ends.values())
    assert set(drawn) == set(range(7))  # nobody else starved either


def test_who_is_cancelled_while_rows_are_admitted_leaves_none_behind(engine):
    submit_together, begun = engine.submit_together, threading.Event()

    def slowly(rows):
        begun.set()
        time.sleep(0.3)
        return submit_together(rows)

    engine.submit_together = slowly

    async def sweep():
        async with Sweep(engine, [a_row(i, steps=500) for i in range(3)]) as sweep:
            await finished(sweep)

    async def main():
        task = asyncio.ensure_future(sweep())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())  # waits for the thread
    assert engine.drain(2.0)


def test_the_event_loop_goes_on_while_rows_are_admitted(engine):
    admitted = engine._admitted
    threads = set()

    def noted(*of):
        threads.add(threading.current_thread())
        return admitted(*of)

    engine._admitted = noted

    async def main():
        async with Sweep(engine, [a_row(i) for i in range(5)]) as sweep:
            return await finished(sweep)

    assert len(asyncio.run(main())) == 5
    assert threading.main_thread() not in threads
