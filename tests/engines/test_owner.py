import threading
import time
from itertools import pairwise

import pytest

from engines.errors import Draining, EngineFailed
from engines.owner import Background, Owner


class Rounds:
    """Work that wants a number of rounds, and remembers the threads that did them."""

    def __init__(self, wanted=0):
        self.left, self.threads, self.ended = wanted, [], []

    def busy(self):
        return self.left > 0

    def round(self):
        if self.left:
            self.left -= 1
            self.threads.append(threading.current_thread().name)

    def end(self, why):
        self.ended.append(why)


@pytest.fixture
def start():
    owners = []

    def started(work):
        owners.append(Owner("the-owner", work, threads=1))
        owners[-1].start()
        return owners[-1]

    yield started
    for owner in owners:
        owner.stop()


def drained(owner, work):
    """Hand the generator over; what was heard of it, and an event that its end sets."""
    heard, over = [], threading.Event()

    def end(kind):
        return lambda value: (heard.append((kind, value)), over.set())

    task = Background(work, lambda item: heard.append(("item", item)), end("done"), end("error"))
    owner.background(task)
    return task, heard, over


def test_all_rounds_are_done_on_one_thread(start):
    work = Rounds(5)
    owner = start(work)
    assert owner.wait(lambda: not work.busy(), 10.0)
    assert work.threads == ["the-owner"] * 5


def test_a_generator_is_drained_on_the_same_thread(start):
    def work():
        yield threading.current_thread().name
        return "result"

    _, heard, over = drained(start(Rounds()), work())
    assert over.wait(10)
    assert heard == [("item", "the-owner"), ("done", "result")]


def test_rounds_go_on_between_the_items_of_a_generator(start):
    rounds, seen = Rounds(10**12), []  # more than any machine does before the generator is over

    def work():
        for _ in range(5):
            seen.append(rounds.left)
            yield

    _, _, over = drained(start(rounds), work())
    assert over.wait(10)
    assert all(later < earlier for earlier, later in pairwise(seen))


def test_a_generator_that_breaks_is_reported_and_the_thread_lives_on(start):
    def broken():
        yield 1
        raise ValueError("no")

    owner = start(Rounds())
    _, heard, over = drained(owner, broken())
    assert over.wait(10)
    assert heard[0] == ("item", 1) and isinstance(heard[1][1], ValueError)
    _, heard, over = drained(owner, (i for i in range(2)))
    assert over.wait(10) and [value for _, value in heard] == [0, 1, None]


def test_a_cancelled_generator_is_closed_and_nothing_more_is_heard(start):
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield
        finally:
            closed.set()

    owner = start(Rounds())
    task, heard, over = drained(owner, endless())
    assert owner.wait(lambda: bool(heard), 10.0)
    task.cancel()
    assert closed.wait(10)
    assert not over.is_set() and {kind for kind, _ in heard} <= {"item"}


def test_stopping_tells_generators_that_wait(start):
    owner = start(Rounds())

    def endless():
        while True:
            yield

    _, heard, over = drained(owner, endless())
    owner.stop()
    assert over.wait(10) and isinstance(heard[-1][1], Draining)
    with pytest.raises(Draining):
        owner.background(Background(endless(), print, print, print))


def test_the_heart_beats_while_idle_and_stops_while_something_hangs(start):
    owner, go_on = start(Rounds()), threading.Event()
    time.sleep(0.7)
    assert owner.heartbeat() < 0.65

    def hanging():
        go_on.wait(10)
        yield

    _, _, over = drained(owner, hanging())
    time.sleep(0.8)
    assert owner.heartbeat() > 0.7
    go_on.set()
    assert over.wait(10)


def test_a_thread_that_dies_says_so_everywhere(start):
    work = Rounds()
    owner = start(work)

    def deadly():
        yield
        raise SystemExit("gone")

    _, heard, over = drained(owner, deadly())
    assert over.wait(10) and isinstance(heard[-1][1], SystemExit)
    owner.stop()
    assert owner.heartbeat() == float("inf")
    [why] = work.ended
    assert isinstance(why, EngineFailed) and "gone" not in str(why)
    with pytest.raises(EngineFailed):
        owner.background(Background(deadly(), print, print, print))


def test_waiting_gives_up(start):
    assert start(Rounds()).wait(lambda: False, 0.05) is False
