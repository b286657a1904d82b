"""Models that slots cannot hold, behind the same interface."""

from dataclasses import replace

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from engines.errors import AllTokensOnly, DeadlineExceeded, LogitsNotANumber
from engines.slots.choosing import engine_for
from engines.slots.engine import SlotEngine
from engines.slots.generate import GenerateEngine
from engines.slots.request import Cancelled, Failed, Finished, Sampling, Token
from models.errors import UnknownSite
from models.family import FAMILIES
from models.loading import load
from models.patch import Patch, Shift
from models.toys import seeded, wake
from models.toys_t5 import toy_t5_tokenizer
from tests.engines.slots.conftest import TEXTS, generated, patch, too_much


@pytest.fixture(scope="module")
def tiny_mamba(tmp_path_factory):
    return load("mamba", FAMILIES["any_language"].tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory):
    """An encoder-decoder whose decoder begins with a token of its own."""
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = toy_t5_tokenizer(folder)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    with seeded(0):
        model = T5ForConditionalGeneration(config)
    wake(model, 0)
    model.save_pretrained(folder)
    return load("t5", folder)


@pytest.fixture
def engines():
    made = []

    def make(hosted, **settings):
        made.append(engine_for(hosted, capacity=128, **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.stop()


def test_the_family_chooses_the_engine_and_the_answer_says_which(
    engines, desk, tiny_llama, tiny_mamba
):
    slots, odd = engines(tiny_llama, slots=3), engines(tiny_mamba)
    assert isinstance(slots, SlotEngine) and isinstance(odd, GenerateEngine)
    assert (slots.load()["engine"], odd.load()["engine"]) == ("slots", "generate")
    (tell,) = desk.ask(odd, desk.row(tiny_mamba, TEXTS[0]))
    assert (tell.last.engine, tell.last.slots) == ("generate", 1)


def test_a_recurrent_model_writes_what_generate_writes(engines, desk, tiny_mamba):
    rows = [desk.row(tiny_mamba, text, ignore_eos=i % 2 == 0) for i, text in enumerate(TEXTS[:3])]
    for row, tell in zip(rows, desk.ask(engines(tiny_mamba), *rows), strict=True):
        assert tell.ids == generated(tiny_mamba, row)
        assert len(tell.tokens()) == len(tell.ids)


def test_an_encoder_decoder_answers_what_it_has_read(engines, desk, tiny_t5):
    row = desk.row(tiny_t5, "the red house of arda", max_tokens=8)
    with torch.inference_mode():
        wanted = tiny_t5.modules["lm"].generate(
            torch.tensor([row.ids]),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=len(TEXTS) * 1000,
        )
    (tell,) = desk.ask(engines(tiny_t5), row)
    assert tell.ids == tuple(wanted[0, 1:].tolist())
    assert not tell.last.text.startswith(" ")
    with pytest.raises(UnknownSite):
        engines(tiny_t5).submit(replace(row, patch=patch(0)), lambda _: None)


def test_a_patch_of_all_tokens_acts_and_is_counted(engines, desk, tiny_mamba):
    vector = torch.linspace(-3, 3, 32)
    steered = desk.row(
        tiny_mamba, TEXTS[0], patch=Patch((Shift(site="lm.block.1", vector=vector),))
    )
    (tell,) = desk.ask(engines(tiny_mamba), steered)
    assert tell.ids == generated(tiny_mamba, steered)
    assert tell.ids != generated(tiny_mamba, replace(steered, patch=Patch()))
    assert tell.last.tokens_changed == {"lm.block.1": len(steered.ids) + steered.max_tokens - 1}
    some = Patch((Shift(site="lm.block.1", vector=vector, positions="generated"),))
    with pytest.raises(AllTokensOnly) as refused:
        engines(tiny_mamba).submit(replace(steered, patch=some), lambda _: None)
    assert "positions: all" in refused.value.remedy and refused.value.param == "steering"


def test_it_samples_stops_and_scores_as_the_slot_engine_does(desk, tiny_llama):
    both = [desk.engine(tiny_llama), desk.engine(tiny_llama, GenerateEngine)]
    rows = [
        desk.row(
            tiny_llama,
            text,
            sampling=Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.1),
            logprobs=2,
            seed=i,
            n=2,
            stop=("a",),
            patch=patch(i) if i else Patch(),
        )
        for i, text in enumerate(TEXTS[:3])
    ]
    for row in rows:
        slots, plain = (desk.ask(engine, row)[0] for engine in both)
        assert slots.over.wait(60) and plain.over.wait(60)
        for choice in range(2):
            one, other = slots.tokens(choice), plain.tokens(choice)
            assert [(t.id, t.text, t.position) for t in one] == [
                (t.id, t.text, t.position) for t in other
            ]
            close = pytest.approx([t.own.logprob for t in other], abs=1e-4)
            assert [t.own.logprob for t in one] == close
        assert ends_of(slots) == ends_of(plain)


def ends_of(tell):
    ends = [event for event in tell.events if isinstance(event, Finished)]
    return {(e.choice, e.reason, e.stop, tuple(sorted(e.tokens_changed.items()))) for e in ends}


def test_a_row_that_is_cancelled_late_or_not_finite_ends_alone(engines, desk, tiny_mamba):
    engine, row = engines(tiny_mamba), desk.row(tiny_mamba, TEXTS[0], max_tokens=60)
    told = type(desk.ask(engine, row)[0])()

    def tell(event):
        told(event)
        if len(told.tokens()) == 2:
            ticket.cancel()

    go_on = desk.held(engine)
    ticket = engine.submit(row, tell)
    late, bad, good = desk.ask(
        engine,
        replace(row, seconds=0.0),
        replace(row, patch=too_much()),
        replace(row, max_tokens=3),
    )
    go_on.set()
    assert isinstance(told.last, Cancelled) and len(told.tokens()) == 2
    assert isinstance(late.last.why, DeadlineExceeded)
    assert isinstance(bad.last.why, LogitsNotANumber)
    assert good.ids == generated(tiny_mamba, replace(row, max_tokens=3))
    assert sum(isinstance(e, Token) for e in good.events) == 3


@pytest.mark.parametrize("why", ["cancelled", "late"])
def test_whoever_waits_hears_of_its_end_while_another_text_is_written(
    engines, desk, tiny_mamba, why
):
    engine, row = engines(tiny_mamba), desk.row(tiny_mamba, TEXTS[0], max_tokens=60)
    (first,), order = desk.ask(engine, row), []
    waiting = type(first)()
    writing = type(first)()

    def tell(event):
        if isinstance(event, Token):
            order.append("token")
            if len(order) == 3 and why == "cancelled":
                ticket.cancel()
            if len(order) == 3:
                ticket.request = replace(ticket.request, seconds=0.0 if why == "late" else 600.0)
        writing(event)

    def wait(event):
        if isinstance(event, Cancelled | Failed):
            order.append("end")
        waiting(event)

    go_on = desk.held(engine)
    engine.submit(row, tell)
    ticket = engine.submit(row, wait)
    go_on.set()
    assert writing.ids and isinstance(waiting.last, Cancelled if why == "cancelled" else Failed)
    assert order.index("end") == 3
