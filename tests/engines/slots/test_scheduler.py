"""Slots, pieces of prompts and steps, driven by hand."""

import threading

import pytest

from engines.slots.prefix import Prefixes
from engines.slots.request import Finished, Token
from engines.slots.row import Row, Ticket, Told
from engines.slots.scheduler import Scheduler
from engines.slots.sights import Sights
from engines.slots.waiting import Waiting
from tests.engines.slots.conftest import TEXTS, generated, patch

LONG = " ".join(TEXTS)


class Stage:
    """A scheduler without a thread: `round` does what the engine does, and keeps a diary."""

    def __init__(self, hosted, **settings):
        self.hosted, self.diary = hosted, []
        self.waiting = Waiting(threading.Condition())
        family = hosted.family
        stated = {"slots": 4, "capacity": 160, "budget": 16, "patience": 2, "patch_bytes": 2**20}
        prefixes = Prefixes(hosted, family, 0)
        stated["sights"] = Sights(hosted, 0)
        self.scheduler = Scheduler(hosted, family, prefixes, **(stated | settings))
        self.told = Told(
            decode=lambda ids: family.detokenize(hosted, ids),
            spell=str,
            eos=frozenset(),
            vocab=family.vocab_size(hosted),
            engine="slots",
            slots=4,
        )
        step = family.step

        def noted(hosted, ids, cache, slots, starts, **shown):
            self.diary.append((tuple(ids.shape), tuple(slots), tuple(starts)))
            return step(hosted, ids, cache, slots, starts, **shown)

        family.step = noted
        self.undo = lambda: delattr(family, "step")

    def ask(self, request):
        events = []
        row = Row(Ticket(request, events.append), 0, request.max_tokens, self.told)
        self.waiting.put([row])
        return row, events

    def round(self):
        self.waiting.sweep()
        self.scheduler.sweep()
        self.scheduler.read(self.waiting)
        self.scheduler.write(self.waiting)

    def run(self):
        while self.waiting or self.scheduler.rows:
            self.round()


@pytest.fixture
def stage(tiny_llama):
    made = []

    def make(**settings):
        made.append(Stage(tiny_llama, **settings))
        return made[-1]

    yield make
    for of in made:
        of.undo()


def ids_of(events):
    (last,) = [e for e in events if isinstance(e, Finished)]
    return last.ids


def test_a_prompt_is_read_in_pieces_between_the_steps_of_others(stage, desk, tiny_llama):
    on = stage(patience=None)
    running, first = on.ask(desk.row(tiny_llama, TEXTS[1], max_tokens=30))
    on.round()
    long, second = on.ask(desk.row(tiny_llama, LONG))
    on.diary.clear()
    while not second:
        on.round()
    pieces = [shape[1] for shape, slots, _ in on.diary if slots == (1,)]
    assert pieces == [16] * (long.prompt // 16) + [long.prompt % 16] * bool(long.prompt % 16)
    between = [slots for _, slots, _ in on.diary]
    assert between[:4] == [(1,), (0,), (1,), (0,)]
    on.run()
    assert ids_of(second) == generated(tiny_llama, long.request)
    assert ids_of(first) == generated(tiny_llama, running.request)


@pytest.mark.parametrize("newcomers", [1, 3])
def test_a_first_token_waits_for_at_most_two_steps_and_one_for_each_before_it(
    stage, desk, tiny_llama, newcomers
):
    on = stage(budget=8)
    on.ask(desk.row(tiny_llama, TEXTS[1], max_tokens=40))
    on.round()
    on.scheduler.write(on.waiting)  # the step during which they come
    before = on.scheduler.steps - 1
    come = [on.ask(desk.row(tiny_llama, LONG[i:])) for i in range(newcomers)]
    while not all(any(isinstance(e, Token) for e in events) for _, events in come):
        on.round()
    # The last round also wrote with them.
    assert on.scheduler.steps - 1 - before <= 2 + newcomers - 1
    assert max(shape[0] * shape[1] for shape, _, _ in on.diary) <= 8


def test_however_many_are_due_no_more_than_the_budget_and_one_prompt_is_read_between_two_steps(
    stage, desk, tiny_llama
):
    on = stage(budget=8, slots=6)
    running, first = on.ask(desk.row(tiny_llama, TEXTS[1], max_tokens=40))
    on.round()
    come = [on.ask(desk.row(tiny_llama, LONG[5 * i :], max_tokens=2)) for i in range(5)]
    longest, read, over = max(row.prompt for row, _ in come), [], []
    while len(over) < len(come):
        before = on.scheduler.read_tokens
        on.round()
        read.append(on.scheduler.read_tokens - before)
        over += [row for row, _ in come if len(row.tokens) > row.prompt and row not in over]
    assert longest > 2 * 8 and max(read) <= 8 + longest
    assert over == [row for row, _ in come]
    on.run()
    assert ids_of(first) == generated(tiny_llama, running.request)


def test_prompts_of_one_length_are_read_side_by_side(stage, desk, tiny_llama):
    on = stage(budget=64)
    rows = [
        on.ask(desk.row(tiny_llama, tuple(range(i, i + 9)), patch=patch(i))) for i in range(5, 9)
    ]
    on.round()
    assert on.diary[0] == ((4, 9), (0, 1, 2, 3), (0, 0, 0, 0))
    on.run()
    for row, events in rows:
        assert ids_of(events) == generated(tiny_llama, row.request)


def test_holes_are_filled_so_that_rows_stay_side_by_side(stage, desk, tiny_llama):
    on = stage(patience=None)
    lengths = (9, 3, 14, 5)
    rows = [
        on.ask(desk.row(tiny_llama, TEXTS[i], max_tokens=n, patch=patch(i)))
        for i, n in enumerate(lengths)
    ]
    while on.waiting:
        on.round()
    late = on.ask(desk.row(tiny_llama, LONG, max_tokens=4))
    on.run()
    for row, events in (*rows, late):
        assert ids_of(events) == generated(tiny_llama, row.request)
    for _, slots, _ in on.diary:
        assert slots == tuple(range(slots[0], slots[0] + len(slots)))
    assert max(len(slots) for _, slots, _ in on.diary) >= 3


def test_a_reader_that_is_cancelled_leaves_its_slot_to_the_next(stage, desk, tiny_llama):
    on = stage(patience=None, budget=8, slots=2)
    running, first = on.ask(desk.row(tiny_llama, TEXTS[1], max_tokens=12))
    on.round()
    gone, _ = on.ask(desk.row(tiny_llama, LONG))
    on.round()
    assert on.scheduler.reading == [gone] and 0 < gone.done < gone.prompt
    gone.ticket.cancel()
    late, third = on.ask(desk.row(tiny_llama, TEXTS[0]))
    on.run()
    assert ids_of(first) == generated(tiny_llama, running.request)
    assert ids_of(third) == generated(tiny_llama, late.request)


def test_rows_come_in_the_order_in_which_they_asked(stage, desk, tiny_llama):
    on = stage(slots=1, budget=64)
    asked = [on.ask(desk.row(tiny_llama, text, max_tokens=2)) for text in TEXTS]
    over = []
    while len(over) < len(asked):
        on.round()
        over += [row for row, _ in asked if row.over and row not in over]
    assert over == [row for row, _ in asked]
