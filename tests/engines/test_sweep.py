"""Rows of one caller, admitted in chunks."""

import asyncio
import time
from dataclasses import replace

import pytest

from engines.diffusion import DiffusionEngine
from engines.errors import BadRow, DeadlineExceeded, Full
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
        with Sweep(engine, [a_row(i) for i in range(11)]) as sweep:
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
        with Sweep(engine, [a_row(i) for i in range(3)]) as sweep:
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
        with Sweep(engine, [a_row(i, steps=20) for i in range(15)]) as sweep:
            async for _, event in sweep:
                waiting = waiting or asyncio.ensure_future(other())
                if isinstance(event, Finished):
                    over.append(time.monotonic())
            return await waiting, over

    arrived, over = asyncio.run(main())
    assert sum(moment < arrived for moment in over) <= 8


def test_a_sweep_that_is_left_frees_its_rows(engine):
    async def main():
        with Sweep(engine, [a_row(i, steps=200) for i in range(9)]) as sweep:
            async for _ in sweep:
                break

    asyncio.run(main())
    assert engine.drain(5.0)
    assert engine.load()["active"] == engine.load()["waiting"] == 0


def test_what_the_engine_refuses_is_raised_before_anything_has_begun(engine):
    async def main(rows):
        with Sweep(engine, rows):
            raise AssertionError("it began")

    with pytest.raises(BadRow):
        asyncio.run(main([a_row(0), a_row(1, steps=0)]))
    assert engine.load()["active"] == engine.load()["waiting"] == 0


def test_a_full_engine_is_refused_at_the_beginning_and_waited_for_in_the_middle(tiny_sd):
    engine = DiffusionEngine(tiny_sd, slots=2, max_waiting=2)

    async def main():
        with Sweep(engine, [a_row(i) for i in range(6)]) as sweep:
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
        with pytest.raises(Full), Sweep(engine, [a_row(9)] * 2):
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
        with Sweep(engine, rows) as sweep:
            return await finished(sweep)

    try:
        ends = asyncio.run(main())
    except DeadlineExceeded:
        return
    assert isinstance(ends[0], Failed) and isinstance(ends[0].why, DeadlineExceeded)
