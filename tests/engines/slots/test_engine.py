"""Rows of one engine: they must not notice each other."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch

from engines.errors import (
    BadGeneration,
    ContextTooLong,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Full,
    LogitsNotANumber,
)
from engines.slots.engine import SlotEngine
from engines.slots.request import Cancelled, Failed, Finished, Queued, Sampling, Token
from engines.slots.row import Row
from engines.slots.sampling import Draws
from models.errors import BadPatch, PatchNotApplied, UnknownSite
from models.patch import Patch, Shift
from tests.engines.slots.conftest import TEXTS, generated, patch, too_much


def crowd(desk, hosted):
    """Steered rows, each otherwise, with plain ones between; lengths differ."""
    return [
        desk.row(
            hosted,
            text,
            id=f"row-{i}",
            patch=patch(i) if i % 3 else Patch(),
            max_tokens=4 + 3 * (i % 4),
        )
        for i, text in enumerate((*TEXTS, *TEXTS[::-1]))
    ]


# Neighbours do not exist


def test_rows_that_join_and_leave_are_each_what_generate_says_alone(desk, tiny_llama):
    engine, rows = desk.engine(tiny_llama, slots=5, budget=16), crowd(desk, tiny_llama)
    told = desk.ask(engine, *rows)
    for row, tell in zip(rows, told, strict=True):
        assert tell.ids == generated(tiny_llama, row), row.id
    assert {tell.last.batch for tell in told} & {3, 4, 5}


def test_log_probabilities_are_those_of_a_plain_forward(desk, tiny_llama):
    rows = [replace(row, logprobs=4) for row in crowd(desk, tiny_llama)[:6]]
    for row, tell in zip(rows, desk.ask(desk.engine(tiny_llama), *rows), strict=True):
        ids = torch.tensor([[*row.ids, *tell.ids]])
        with torch.inference_mode(), tiny_llama.planned([row.patch]):
            logs = tiny_llama.family.logits(tiny_llama, ids)[0].log_softmax(dim=-1)
        for token in tell.tokens():
            at = logs[token.position - 1]
            assert token.own.id == token.id
            assert token.own.logprob == pytest.approx(float(at[token.id]), abs=1e-4)
            best = at.topk(4)
            assert [t.logprob for t in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert [t.id for t in token.top] == best.indices.tolist()


def test_a_sampled_row_is_the_same_alone_and_in_a_busy_engine(desk, tiny_llama):
    engine = desk.engine(tiny_llama, cache_bytes=0)
    warm = Sampling(temperature=0.9, top_p=0.95, presence_penalty=0.5)
    rows = [replace(r, sampling=warm, seed=i) for i, r in enumerate(crowd(desk, tiny_llama)[:5])]
    alone = [desk.ask(engine, row)[0].ids for row in rows]
    busy = [tell.ids for tell in desk.ask(engine, *rows)]
    assert alone == busy
    other = desk.ask(engine, replace(rows[0], seed=77))[0].ids
    assert other != alone[0]


def test_n_texts_differ_and_each_is_the_same_again(desk, tiny_llama):
    engine = desk.engine(tiny_llama)
    row = desk.row(tiny_llama, TEXTS[2], sampling=Sampling(), n=5, seed=3)
    first, again = desk.ask(engine, row, row)
    for tell in (first, again):
        assert tell.over.wait(60)
    texts = [{e.choice: e.ids for e in t.events if isinstance(e, Finished)} for t in (first, again)]
    assert texts[0] == texts[1] and len(set(texts[0].values())) > 3
    assert sorted(texts[0]) == [0, 1, 2, 3, 4]


def test_a_row_that_is_not_finite_fails_alone_and_spoils_nobody_after_it(desk, tiny_llama):
    engine = desk.engine(tiny_llama, slots=3)
    poison = [desk.row(tiny_llama, TEXTS[2], patch=too_much(p)) for p in ("generated", "all")]
    good = desk.row(tiny_llama, TEXTS[0], max_tokens=12)
    go_on = desk.held(engine)
    told = desk.ask(engine, poison[0], good, poison[1], *[good] * 4)
    go_on.set()
    for bad in (told[0], told[2]):
        assert isinstance(bad.last, Failed) and isinstance(bad.last.why, LogitsNotANumber)
    wanted = generated(tiny_llama, good)
    assert all(tell.ids == wanted for tell in (told[1], *told[3:]))


@pytest.mark.parametrize("place", [0, 1])
def test_a_forward_that_breaks_for_one_row_is_repeated_for_the_others(
    desk, tiny_llama, monkeypatch, place
):
    engine, family = desk.engine(tiny_llama), tiny_llama.family
    step, bad = family.step, 411

    def breaking(hosted, ids, *args, **named):
        if bool((ids == bad).any()):
            raise ValueError("no such thing")
        return step(hosted, ids, *args, **named)

    monkeypatch.setattr(family, "step", breaking)
    ids = tuple(family.tokenize(tiny_llama, TEXTS[0]))
    rows = [desk.row(tiny_llama, ids)] * 3
    rows[place] = desk.row(tiny_llama, (*ids[:-1], bad))
    go_on = desk.held(engine)
    told = desk.ask(engine, *rows)
    go_on.set()
    assert isinstance(told[place].last.why, EngineFailed)
    wanted = generated(tiny_llama, rows[2])
    assert [told[i].ids for i in range(3) if i != place] == [wanted] * 2


@pytest.mark.parametrize("broken", ["shape", "took", "within"])
def test_a_row_that_breaks_outside_the_forward_fails_alone(desk, tiny_llama, monkeypatch, broken):
    engine = desk.engine(tiny_llama, cache_bytes=0)
    warm = Sampling(temperature=0.9, presence_penalty=0.5)
    row = desk.row(tiny_llama, TEXTS[0], sampling=warm, seed=4)
    wanted = desk.ask(engine, row)[0].ids
    of = Row if broken == "within" else Draws
    works = getattr(of, broken)

    def breaking(self, *args):
        stated = self.request.sampling if of is Row else self.sampling
        if stated.presence_penalty == 0.25:
            raise IndexError("index 50257 is out of bounds")
        return works(self, *args)

    monkeypatch.setattr(of, broken, breaking)
    bad = replace(row, sampling=replace(warm, presence_penalty=0.25), patch=patch(0))
    go_on = desk.held(engine)
    told = desk.ask(engine, row, bad, row)
    go_on.set()
    why = told[1].last.why
    assert isinstance(why, EngineFailed) and "50257" not in str(why) + str(why.remedy)
    assert told[0].ids == told[2].ids == desk.ask(engine, row)[0].ids == wanted


@pytest.mark.parametrize("broken", ["find", "load", "store"])
def test_what_is_known_of_prompts_may_break_without_ending_the_engine(
    desk, tiny_llama, monkeypatch, broken
):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, TEXTS[0])
    monkeypatch.setattr(engine.scheduler.prefixes, broken, lambda *_: 1 / 0)
    (tell,) = desk.ask(engine, row)
    if broken == "load":
        assert isinstance(tell.last.why, EngineFailed)
    else:
        assert tell.ids == generated(tiny_llama, row)
    monkeypatch.undo()
    assert desk.ask(engine, row)[0].ids == generated(tiny_llama, row)


def test_a_listener_that_breaks_ends_its_own_row_only(desk, tiny_llama):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, TEXTS[0])

    def deaf(_event):
        raise RuntimeError("gone")

    engine.submit(row, deaf)
    assert desk.ask(engine, row)[0].ids == generated(tiny_llama, row)


def test_a_patch_that_misses_its_row_fails_it_alone(desk, tiny_llama, monkeypatch):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, TEXTS[0])
    steered = replace(row, patch=patch(0))
    planned = type(tiny_llama).planned

    def missing(self, patches, *args, **named):
        kept = [Patch() if p == steered.patch else p for p in patches]
        context = planned(self, kept, *args, **named)
        if kept == list(patches):
            return context
        return Missed(context, frozenset(i for i, p in enumerate(patches) if p != kept[i]))

    monkeypatch.setattr(type(tiny_llama), "planned", missing)
    go_on = desk.held(engine)
    good, bad = desk.ask(engine, replace(row, patch=patch(1)), steered)
    go_on.set()
    assert isinstance(bad.last.why, PatchNotApplied)
    assert len(good.ids) == row.max_tokens


class Missed:
    """A block under a plan that did not reach some rows."""

    def __init__(self, context, rows):
        self.context, self.rows = context, rows

    def __enter__(self):
        return self.context.__enter__()

    def __exit__(self, *why):
        self.context.__exit__(*why)
        if why[0] is None:
            raise PatchNotApplied(self.rows, "lm.block.1", 1, 0)


# What is told


def test_what_was_changed_is_counted_per_place(desk, tiny_llama):
    engine = desk.engine(tiny_llama, cache_bytes=0)
    vector = torch.ones(32)
    everywhere = Shift(site="lm.block.0", vector=vector)
    later = Shift(site="lm.block.1", vector=vector, positions="generated")
    last = Shift(site="lm.block.2", vector=vector, positions="last")
    named = Shift(site="lm.block.3", vector=vector, positions=(0, 2))
    row = desk.row(tiny_llama, TEXTS[2], patch=Patch((everywhere, later, last, named)))
    changed = desk.ask(engine, row)[0].last.tokens_changed
    prompt, written = len(row.ids), row.max_tokens
    assert changed == {
        "lm.block.0": prompt + written - 1,
        "lm.block.1": written - 1,
        "lm.block.2": 1,
        "lm.block.3": 2,
    }


def test_events_come_in_order_and_say_the_whole_text(desk, tiny_llama):
    (tell,) = desk.ask(desk.engine(tiny_llama), desk.row(tiny_llama, TEXTS[0], max_tokens=10))
    last = tell.last
    assert isinstance(tell.events[0], Queued) and len(tell.tokens()) == 10
    assert "".join(token.text for token in tell.tokens()) == last.text
    assert [token.id for token in tell.tokens()] == list(last.ids)
    assert [t.position for t in tell.tokens()] == list(
        range(last.prompt_tokens, 10 + last.prompt_tokens)
    )
    assert (last.reason, last.engine, last.slots) == ("length", "slots", 4)
    assert 0 <= last.waited <= last.first_token <= last.seconds


def test_a_stop_string_ends_the_row_and_is_not_said(desk, tiny_llama):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, TEXTS[0], max_tokens=12)
    whole = desk.ask(engine, row)[0].last.text
    stop = whole[len(whole) // 2 :][:3]
    (tell,) = desk.ask(engine, replace(row, stop=("never", stop)))
    assert (tell.last.reason, tell.last.stop) == ("stop", stop)
    assert tell.last.text == whole[: whole.index(stop)]
    assert "".join(token.text for token in tell.tokens()) == tell.last.text


def test_the_models_end_token_ends_the_row(desk, tiny_llama):
    (end,) = tiny_llama.family.eos_ids(tiny_llama)
    said = Sampling(temperature=0.0, logit_bias={end: 100.0})
    row = desk.row(tiny_llama, TEXTS[0], ignore_eos=False, sampling=said, logprobs=0)
    (tell,) = desk.ask(desk.engine(tiny_llama), row)
    assert (tell.ids, tell.last.text, tell.last.reason) == ((end,), "", "stop")
    assert tell.tokens()[0].eos and tell.tokens()[0].own.logprob < -1


def test_a_stream_ends_after_its_last_text_and_leaving_it_cancels(desk, tiny_llama):
    engine = desk.engine(tiny_llama)
    row = desk.row(tiny_llama, TEXTS[0], n=2)

    async def whole():
        return [event async for event in engine.stream(row)]

    async def left():
        stream = engine.stream(replace(row, max_tokens=100, n=1))
        async for event in stream:
            if isinstance(event, Token):
                break
        await stream.aclose()

    events = asyncio.run(whole())
    assert sum(isinstance(event, Finished) for event in events) == 2
    asyncio.run(left())
    assert engine.drain(30.0) and not engine.rows()


# Leaving


def test_a_cancelled_row_leaves_at_the_next_step(desk, tiny_llama):
    engine, tokens = desk.engine(tiny_llama), []
    over = threading.Event()

    def tell(event):
        tokens.append(event)
        if sum(isinstance(e, Token) for e in tokens) == 3:
            ticket.cancel()
        if isinstance(event, Cancelled):
            over.set()

    go_on = desk.held(engine)
    ticket = engine.submit(desk.row(tiny_llama, TEXTS[0], max_tokens=100), tell)
    go_on.set()
    assert over.wait(30)
    assert sum(isinstance(e, Token) for e in tokens) == 3


def test_whoever_waits_can_be_cancelled_or_be_too_late(desk, tiny_llama):
    engine = desk.engine(tiny_llama, slots=1)
    go_on = desk.held(engine)
    row = desk.row(tiny_llama, TEXTS[0])
    late, good = desk.ask(engine, replace(row, seconds=0.0), row)
    ticket = engine.submit(row, told := type(late)())
    ticket.cancel()
    go_on.set()
    assert isinstance(late.last.why, DeadlineExceeded)
    assert isinstance(told.last, Cancelled) and isinstance(good.last, Finished)


def test_a_full_waiting_room_refuses_and_says_when_to_come_back(desk, tiny_llama):
    engine = desk.engine(tiny_llama, max_waiting=3)
    go_on = desk.held(engine)
    row = desk.row(tiny_llama, TEXTS[0])
    told = desk.ask(engine, replace(row, n=3))
    with pytest.raises(Full) as full:
        engine.submit(row, lambda _: None)
    go_on.set()
    assert full.value.retry_after >= 1 and told[0].last
    with pytest.raises(BadGeneration):
        engine.submit(replace(row, n=4), lambda _: None)


def test_draining_finishes_what_runs_and_takes_nothing_new(desk, tiny_llama):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, TEXTS[0])
    told = desk.ask(engine, *[row] * 6)
    assert engine.drain(60.0)
    with pytest.raises(Draining):
        engine.submit(row, lambda _: None)
    assert all(isinstance(tell.last, Finished) for tell in told)


def test_stopping_cancels_and_a_dead_thread_says_so(desk, tiny_llama, monkeypatch):
    engine, row = desk.engine(tiny_llama), desk.row(tiny_llama, TEXTS[0], max_tokens=100)
    go_on = desk.held(engine)
    (tell,) = desk.ask(engine, row)
    threading.Timer(0.2, go_on.set).start()
    engine.stop()
    assert isinstance(tell.last, Cancelled)
    other = desk.engine(tiny_llama)
    monkeypatch.setattr(other.scheduler, "read", lambda _: 1 / 0)
    (tell,) = desk.ask(other, row)
    assert isinstance(tell.last.why, EngineFailed)
    with pytest.raises(EngineFailed):
        other.submit(row, lambda _: None)


# Refused at the door


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"ids": ()}, BadGeneration),
        ({"ids": (1, 10**6)}, BadGeneration),
        ({"max_tokens": 0}, BadGeneration),
        ({"max_tokens": 200}, ContextTooLong),
        ({"ids": (5,) * 128, "max_tokens": None}, ContextTooLong),
        ({"n": 0}, BadGeneration),
        ({"stop": ("",)}, BadGeneration),
        ({"logprobs": 21}, BadGeneration),
        ({"sampling": Sampling(temperature=float("nan"))}, BadGeneration),
        ({"sampling": Sampling(temperature=-1.0)}, BadGeneration),
        ({"sampling": Sampling(temperature=1e-50)}, BadGeneration),
        ({"sampling": Sampling(temperature=1e38)}, BadGeneration),
        ({"sampling": Sampling(presence_penalty=3.0)}, BadGeneration),
        ({"sampling": Sampling(frequency_penalty=-3.0)}, BadGeneration),
        ({"sampling": Sampling(repetition_penalty=1e-43)}, BadGeneration),
        ({"sampling": Sampling(repetition_penalty=1e9)}, BadGeneration),
        ({"sampling": Sampling(top_p=0.0)}, BadGeneration),
        ({"sampling": Sampling(top_k=-1)}, BadGeneration),
        ({"sampling": Sampling(min_p=1.5)}, BadGeneration),
        ({"sampling": Sampling(repetition_penalty=0.0)}, BadGeneration),
        ({"sampling": Sampling(logit_bias={-1: 1.0})}, BadGeneration),
        ({"sampling": Sampling(logit_bias={1: float("nan")})}, BadGeneration),
        ({"patch": Patch((Shift(site="lm.block.9", vector=torch.ones(32)),))}, UnknownSite),
        ({"patch": Patch((Shift(site="lm.block.0", vector=torch.ones(3)),))}, BadPatch),
        (
            {"patch": Patch((Shift(site="lm.block.0", vector=torch.ones(32), positions=(90,)),))},
            BadPatch,
        ),
    ],
)
def test_what_no_row_can_be_is_refused_before_anything_runs(
    desk, tiny_llama, engine, changes, kind
):
    with pytest.raises(kind):
        engine.submit(replace(desk.row(tiny_llama, TEXTS[0]), **changes), lambda _: None)
    assert not engine.waiting


@pytest.fixture(scope="module")
def engine(tiny_llama):
    made = SlotEngine(tiny_llama, slots=2, capacity=128)
    yield made
    made.stop()


def test_a_patch_that_is_too_large_is_refused_and_large_ones_take_turns(desk, tiny_llama):
    row = desk.row(tiny_llama, TEXTS[0], patch=patch(0))
    size = row.patch.nbytes
    with pytest.raises(BadGeneration):
        desk.engine(tiny_llama, patch_bytes=size - 1).submit(row, lambda _: None)
    engine = desk.engine(tiny_llama, patch_bytes=2 * size)
    go_on = desk.held(engine)
    told = desk.ask(engine, *[row] * 4)
    go_on.set()
    assert [tell.ids for tell in told] == [generated(tiny_llama, row)] * 4
    assert max(tell.last.batch for tell in told) == 2
