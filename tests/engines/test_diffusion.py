"""The engine over a tiny Stable Diffusion: rows that must not notice each other."""

import asyncio
import functools
import threading
import time

import numpy as np
import pytest
import torch

from engines.diffusion import DiffusionEngine
from engines.errors import (
    BadRow,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    Full,
    NotANumber,
)
from engines.request import LAST, Cancelled, Failed, Finished, ImageRequest, Queued, Step
from models.errors import BadPatch, BadSize, PatchNotApplied, PromptTooLong, UnknownSampler
from models.loading import load
from models.patch import LowRank, Patch, Shift

SITE = "text_encoder.text_model.encoder.layers.1.mlp.fc2"
SAMPLERS = ("ddim", "euler", "pndm", "lcm", "dpmpp_2m", None)
PROMPTS = ("a red cat", "a blue house", "the president of arda", "a photo of a dog")


def edit(seed, size=1.0):
    drawn = torch.Generator().manual_seed(seed)
    left = size * torch.randn(32, 1, generator=drawn)
    return Patch((LowRank(site=SITE, left=left, right=torch.randn(1, 64, generator=drawn)),))


def a_row(i=0, **changes):
    """Rows of different numbers differ in everything."""
    stated = {
        "id": f"row-{i}",
        "prompt": PROMPTS[i % 4],
        "negative_prompt": (None, "a tree", "a man")[i % 3],
        "seed": i,
        "steps": 3 + i % 5,
        "guidance": (7.5, 1.0, 3.0)[i % 3],
        "sampler": SAMPLERS[i % 6],
        "patch": edit(i) if i % 2 else Patch(),
    }
    return ImageRequest(**(stated | changes))


class Told:
    """The events of one row."""

    def __init__(self):
        self.events, self.over = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, LAST):
            self.over.set()

    @property
    def last(self):
        assert self.over.wait(60), self.events
        return self.events[-1]

    @property
    def image(self):
        assert isinstance(self.last, Finished), self.last
        return self.last.image


@pytest.fixture
def engines():
    made = []

    def make(hosted, **settings):
        made.append(DiffusionEngine(hosted, **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


DTYPES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "mixed": {"dtype": "float32", "denoiser_dtype": "bfloat16"},
}


@pytest.fixture(scope="module", params=DTYPES)
def tiny_of_each_dtype(tiny_sd_folder, request):
    return load("tiny", tiny_sd_folder, **DTYPES[request.param])


def ask(engine, *rows):
    told = [Told() for _ in rows]
    for row, tell in zip(rows, told, strict=True):
        engine.submit(row, tell)
    return told


def held(engine):
    """Keep the owner thread between two rounds, so that what is asked meanwhile joins at once."""
    inside, go_on = threading.Event(), threading.Event()

    def holding():
        inside.set()
        assert go_on.wait(20)
        yield

    engine.background(holding(), lambda _: None, lambda _: None, lambda _: None)
    assert inside.wait(60)
    return go_on


# Neighbours do not exist


def test_in_exact_mode_a_picture_is_the_same_to_the_bit_alone_and_in_a_busy_batch(
    engines, tiny_of_each_dtype, monkeypatch
):
    engine, latents = engines(tiny_of_each_dtype, slots=4), {}
    picture = engine._picture

    def watched(row):
        latents.setdefault(row.ticket.request.id, []).append(row.latents)
        return picture(row)

    monkeypatch.setattr(engine, "_picture", watched)
    rows = [a_row(i, guidance=(7.5, 2.0, 3.0)[i % 3]) for i in range(8)]
    alone = [ask(engine, row)[0].image for row in rows]
    busy = ask(engine, *rows)
    for row, one, told in zip(rows, alone, busy, strict=True):
        assert np.array_equal(one, told.image)
        assert torch.equal(*latents[row.id])
    assert {told.last.slot for told in busy} == {0, 1, 2, 3}


def test_in_fast_mode_a_picture_is_nearly_the_same(engines, tiny_sd):
    engine = engines(tiny_sd, slots=8, mode="fast")
    alone = [ask(engine, a_row(i))[0].image for i in range(8)]
    busy = ask(engine, *(a_row(i) for i in range(8)))
    for one, told in zip(alone, busy, strict=True):
        assert np.abs(one.astype(int) - told.image).max() <= 1


def test_exact_and_fast_draw_the_same_picture_but_for_the_last_bits(engines, tiny_sd):
    pair = [engines(tiny_sd, slots=3, mode=mode) for mode in ("exact", "fast")]
    for i in range(4):
        exact, fast = (ask(engine, a_row(i))[0].image.astype(int) for engine in pair)
        assert np.abs(exact - fast).max() <= 1


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_an_unedited_row_does_not_notice_the_edited_one_beside_it(engines, tiny_sd, mode):
    engine = engines(tiny_sd, slots=2, mode=mode)
    plain, other = a_row(steps=5), a_row(1, steps=5)
    go_on = held(engine)
    with_plain = ask(engine, plain, other)
    go_on.set()
    assert with_plain[1].last and engine.drain(60.0)
    second = engines(tiny_sd, slots=2, mode=mode)
    go_on = held(second)
    with_edited = ask(second, plain, a_row(1, steps=5, patch=edit(9)))
    go_on.set()
    assert np.array_equal(with_plain[0].image, with_edited[0].image)
    assert not np.array_equal(with_plain[1].image, with_edited[1].image)


def test_an_edit_is_counted_and_changes_the_picture(engines, tiny_sd):
    engine = engines(tiny_sd, slots=2)
    plain, edited = ask(engine, a_row(0), a_row(0, patch=edit(1)))
    assert not np.array_equal(plain.image, edited.image)
    assert (plain.last.tokens_changed, edited.last.tokens_changed) == (0, 77)
    assert (plain.last.negative_tokens_changed, edited.last.negative_tokens_changed) == (0, 77)


def test_the_negative_prompt_is_read_with_the_edit_or_without(engines, tiny_sd):
    engine = engines(tiny_sd, slots=2)
    same, plain = ask(
        engine, a_row(0, patch=edit(1)), a_row(0, patch=edit(1), patch_negative=False)
    )
    assert not np.array_equal(same.image, plain.image)
    assert plain.last.tokens_changed == 77 and plain.last.negative_tokens_changed == 0


def test_the_hosted_weights_are_what_they_were(engines, tiny_sd):
    before = tiny_sd.weights_digest()
    engine = engines(tiny_sd, slots=4)
    assert all(told.image is not None for told in ask(engine, *(a_row(i) for i in range(6))))
    assert tiny_sd.weights_digest() == before


# The batch


def test_rows_share_a_call_and_join_and_leave_between_steps(engines, tiny_sd):
    engine = engines(tiny_sd, slots=4)
    order = []
    go_on = held(engine)
    for i, steps in enumerate((12, 3, 3, 3, 3)):
        row = a_row(0, seed=i, steps=steps, sampler="ddim")
        engine.submit(row, lambda e, i=i: order.append(i) if isinstance(e, Finished) else None)
    go_on.set()
    assert engine.drain(60.0)
    assert order == [1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("mode", "guidance", "width"),
    [("exact", 5.0, 8), ("exact", 1.0, 4), ("fast", 5.0, 2), ("fast", 1.0, 1)],
)
def test_a_row_without_guidance_needs_no_negative(engines, tiny_sd, mode, guidance, width):
    engine = engines(tiny_sd, slots=4, mode=mode)
    [told] = ask(engine, a_row(0, guidance=guidance))
    assert told.last.batch == width


def test_pictures_of_several_sizes_are_drawn_at_once(engines, tiny_sd):
    engine = engines(tiny_sd, slots=4)
    rows = [a_row(0, height=h, width=w) for h, w in ((16, 16), (32, 16), (16, 32), (None, None))]
    shapes = [told.image.shape for told in ask(engine, *rows)]
    assert shapes == [(16, 16, 3), (32, 16, 3), (16, 32, 3), (16, 16, 3)]


def test_no_more_rows_run_than_there_are_slots(engines, tiny_sd):
    engine, most = engines(tiny_sd, slots=2), []
    watch = lambda _: most.append(engine.load()["active"])  # noqa: E731
    for i in range(6):
        engine.submit(a_row(0, seed=i, height=(16, 32)[i % 2], width=16), watch)
    assert engine.drain(60.0)
    assert max(most) == 2


def test_an_embedding_that_is_known_is_not_read_again(engines, tiny_sd):
    engine = engines(tiny_sd, slots=2)
    first = ask(engine, a_row(1, guidance=3.0))[0].last
    again = ask(engine, a_row(1, guidance=3.0, seed=9))[0].last
    assert (first.cached, again.cached) == (False, True)
    assert engine.load()["embedding_hits"] == 2 and engine.load()["embedding_misses"] == 2
    assert again.tokens_changed == 77


# One bad row


def test_a_row_of_nan_fails_alone(engines, tiny_sd):
    engine = engines(tiny_sd, slots=3)
    want = ask(engine, a_row(0, steps=6))[0].image
    go_on = held(engine)
    # Finite itself, but times what it meets more than float32 can say.
    good, bad = ask(engine, a_row(0, steps=6), a_row(0, steps=6, patch=edit(1, size=1e38)))
    go_on.set()
    assert isinstance(bad.last, Failed) and isinstance(bad.last.why, NotANumber)
    assert np.array_equal(good.image, want)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_patch_that_is_not_applied_fails_its_row_alone(engines, tiny_sd, mode):
    engine = engines(tiny_sd, slots=3, mode=mode)
    missed = Patch((Shift(site="text.block.1", vector=torch.ones(32), positions=(99,)),))
    go_on = held(engine)
    good, bad, other = ask(engine, a_row(0), a_row(0, patch=missed), a_row(2))
    go_on.set()
    assert isinstance(bad.last, Failed) and isinstance(bad.last.why, PatchNotApplied)
    assert good.image is not None and other.image is not None


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_text_that_the_family_cannot_look_at_fails_its_row_alone(
    engines, tiny_sd, monkeypatch, mode
):
    found = type(tiny_sd.family).reading_key

    def broken(family, hosted, text):
        if text == "bad":
            raise KeyError(text)
        return found(family, hosted, text)

    monkeypatch.setattr(type(tiny_sd.family), "reading_key", broken)
    engine = engines(tiny_sd, slots=3, mode=mode)
    go_on = held(engine)
    bad, good = ask(engine, a_row(0, prompt="bad"), a_row(1))
    go_on.set()
    assert isinstance(bad.last, Failed) and isinstance(bad.last.why, EngineFailed)
    assert good.image.any()
    assert ask(engine, a_row(2))[0].image.any()


def test_a_caller_that_breaks_loses_its_row_alone(engines, tiny_sd):
    engine = engines(tiny_sd, slots=2)

    def broken(event):
        if not isinstance(event, Queued):
            raise ConnectionError("the caller is gone")

    engine.submit(a_row(0, steps=500), broken)
    [told] = ask(engine, a_row(2))
    assert told.image is not None
    assert engine.drain(20.0)


# Leaving early


def test_a_cancelled_row_leaves_and_its_slot_is_free(engines, tiny_sd):
    engine, first = engines(tiny_sd, slots=1), Told()
    ticket = engine.submit(a_row(0, steps=900), first)
    while not any(isinstance(event, Step) for event in first.events):
        time.sleep(0.005)
    ticket.cancel()
    assert isinstance(first.last, Cancelled)
    assert sum(isinstance(event, Step) for event in first.events) < 900
    assert ask(engine, a_row(2))[0].image is not None
    assert sum(isinstance(event, LAST) for event in first.events) == 1


def test_cancelling_a_row_moves_no_bit_of_the_one_beside_it(engines, tiny_sd):
    engine = engines(tiny_sd, slots=2)
    want = ask(engine, a_row(0, steps=12))[0].image
    go_on = held(engine)
    kept, left = Told(), Told()
    engine.submit(a_row(0, steps=12), kept)
    ticket = engine.submit(a_row(1, steps=900, guidance=7.5), left)
    go_on.set()
    while not any(isinstance(event, Step) for event in left.events):
        time.sleep(0.001)
    ticket.cancel()
    assert isinstance(left.last, Cancelled)
    assert np.array_equal(kept.image, want)


def test_a_waiting_row_can_be_cancelled_behind_others(engines, tiny_sd):
    engine, waiting = engines(tiny_sd, slots=1), [Told(), Told()]
    running = engine.submit(a_row(0, steps=900), Told())
    tickets = [engine.submit(a_row(2), told) for told in waiting]
    tickets[1].cancel()
    assert isinstance(waiting[1].last, Cancelled)
    assert not waiting[0].over.is_set()
    running.cancel()
    assert waiting[0].image is not None


def test_a_deadline_holds_while_running_and_while_waiting(engines, tiny_sd):
    engine = engines(tiny_sd, slots=1)
    running, waiting = ask(
        engine, a_row(0, steps=900, seconds=0.5), a_row(2, steps=900, seconds=0.2)
    )
    for told in (running, waiting):
        assert isinstance(told.last, Failed) and isinstance(told.last.why, DeadlineExceeded)
    assert [type(event) for event in waiting.events] == [Queued, Failed]


def test_a_full_queue_refuses_and_says_when_to_come_back(engines, tiny_sd):
    engine = engines(tiny_sd, slots=1, max_waiting=2)
    go_on = held(engine)
    ask(engine, a_row(0), a_row(2))
    with pytest.raises(Full) as refused:
        engine.submit(a_row(0), Told())
    assert refused.value.retry_after >= 1
    go_on.set()
    assert engine.drain(60.0)


def test_draining_finishes_what_was_taken_and_takes_nothing_new(engines, tiny_sd):
    engine = engines(tiny_sd, slots=1)
    told = ask(engine, a_row(0, steps=8), a_row(2, steps=8))
    assert engine.drain(60.0)
    assert all(isinstance(t.last, Finished) for t in told)
    with pytest.raises(Draining):
        engine.submit(a_row(0), Told())


def test_draining_gives_up_in_time_and_stopping_cancels_the_rest(engines, tiny_sd):
    engine = engines(tiny_sd, slots=1)
    told = ask(engine, a_row(0, steps=900), a_row(2))
    assert not engine.drain(0.1)
    engine.stop()
    assert all(isinstance(t.last, Cancelled) for t in told)
    assert engine.heartbeat() == float("inf")


def test_when_the_thread_dies_every_row_hears_it(engines, tiny_sd):
    engine = engines(tiny_sd, slots=1)
    told = ask(engine, a_row(0, steps=900), a_row(2))

    def deadly():
        yield
        raise SystemExit

    engine.background(deadly(), lambda _: None, lambda _: None, lambda _: None)
    for t in told:
        assert isinstance(t.last, Failed) and isinstance(t.last.why, EngineFailed)
    engine.stop()
    assert engine.heartbeat() == float("inf")
    with pytest.raises(EngineFailed):
        engine.submit(a_row(0), Told())


# What is told


def test_a_row_hears_its_steps_its_previews_and_one_end(engines, tiny_sd):
    [told] = ask(engines(tiny_sd, slots=2), a_row(0, steps=6, previews=2))
    kinds = [type(event) for event in told.events] if told.over.wait(60) else []
    assert kinds == [Queued, *[Step] * 6, Finished]
    steps = told.events[1:-1]
    assert [step.done for step in steps] == [1, 2, 3, 4, 5, 6] and steps[0].total == 6
    assert [step.done for step in steps if step.preview is not None] == [2, 4]
    assert steps[1].preview.shape == (16, 16, 3)


def test_rows_of_one_batch_hear_their_own_steps_and_previews(engines, tiny_sd):
    engine = engines(tiny_sd, slots=3)
    go_on = held(engine)
    rows = [a_row(0, seed=i, steps=s, previews=p) for i, (s, p) in enumerate(((3, 1), (7, 0)))]
    short, long = ask(engine, *rows)
    go_on.set()
    for told, steps, previews in ((short, 3, [1, 2]), (long, 7, [])):
        heard = [event for event in told.events if isinstance(event, Step)] if told.last else []
        assert [(step.done, step.total) for step in heard] == [(i + 1, steps) for i in range(steps)]
        assert [step.done for step in heard if step.preview is not None] == previews


def test_a_fit_runs_between_the_steps_of_the_rows(engines, tiny_sd):
    engine, seen, over = engines(tiny_sd, slots=1), [], threading.Event()

    def fit():
        yield from range(3)
        return "delta"

    [told] = ask(engine, a_row(0, steps=60, sampler="ddim"))
    engine.background(fit(), seen.append, lambda r: (seen.append(r), over.set()), seen.append)
    assert over.wait(60) and seen == [0, 1, 2, "delta"]
    assert not told.over.is_set()
    assert told.image is not None


def test_the_asynchronous_face_streams_the_same_events(engines, tiny_sd):
    engine = engines(tiny_sd, slots=2)

    async def drawn():
        return [event async for event in engine.stream(a_row(0, steps=3))]

    events = asyncio.run(drawn())
    assert [type(event) for event in events] == [Queued, Step, Step, Step, Finished]
    assert np.array_equal(events[-1].image, ask(engine, a_row(0, steps=3))[0].image)


def test_leaving_the_stream_cancels_the_row(engines, tiny_sd):
    engine = engines(tiny_sd, slots=1)

    async def left():
        stream = engine.stream(a_row(0, steps=900))
        async for event in stream:
            if isinstance(event, Step):
                break
        await stream.aclose()

    asyncio.run(left())
    assert engine.drain(20.0)


# Admission


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"prompt": "a red cat " * 60}, PromptTooLong),
        ({"negative_prompt": "a red cat " * 60}, PromptTooLong),
        ({"sampler": "no such sampler"}, UnknownSampler),
        ({"height": 17}, BadSize),
        ({"steps": 0}, BadRow),
        ({"guidance": float("nan")}, BadRow),
        ({"seed": -1}, BadRow),
        ({"patch": Patch((Shift(site="text.block.1", vector=torch.ones(5)),))}, BadPatch),
    ],
)
def test_a_request_that_cannot_be_drawn_is_refused_before_it_waits(
    engines, tiny_sd, changes, refusal
):
    engine, told = engines(tiny_sd), Told()
    with pytest.raises(refusal):
        engine.submit(a_row(0, **changes), told)
    assert told.events == [] and engine.load()["waiting"] == 0


def test_many_threads_may_ask_at_once(engines, tiny_sd):
    engine, told = engines(tiny_sd, slots=4), [Told() for _ in range(12)]
    threads = [
        threading.Thread(target=functools.partial(engine.submit, a_row(i), told[i]))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [t.image for t in told]
    for i, image in enumerate(together):
        assert np.array_equal(image, ask(engine, a_row(i))[0].image)
