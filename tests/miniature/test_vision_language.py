"""The shipped vision-language model is what its card says, for the service as for its training."""

import json
import threading

import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from engines.slots.choosing import engine_for
from engines.slots.request import GREEDY, LAST, Finished, Generation
from miniature import weights_path
from miniature.sight.tasks import TASKS, some
from miniature.training.vision_language import accuracy, held_out_rows
from miniature.training.vision_language_model import answer_logits
from miniature.training.vision_language_quality import answered, right
from miniature.training.vision_language_rows import rows_of
from models.loading import load

FLOORS = {
    "counting": (0.82, 0.8),
    "colour order": (0.95, 0.95),
    "sum": (0.95, 0.95),
    "person": (0.87, 0.92),
    "feeling": (0.95, 0.87),
    "scene": (0.95, 0.95),
}
"""Of held-out items, in words and in pictures; a few points below what the card states."""
FOLDER = weights_path("vision-language")


@pytest.fixture(scope="module")
def trained():
    """The library's class and the tokenizer, as training has them."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def hosted():
    one = load("miniature-vl", FOLDER)
    yield one
    one.close()


def test_it_is_a_qwen2_vl_that_is_hosted_as_one(hosted):
    assert hosted.family.kind == "qwen2_vl"
    assert (len(hosted.towers["lm"]), hosted.family.stream_width(hosted, "lm")) == (12, 192)


def test_it_answers_questions_that_training_never_showed(trained):
    model, words = trained
    found = accuracy(model, held_out_rows(words, 40, seed=5), "cpu", batch=40)
    low = {
        (name, kind): found[name][kind]
        for name, floors in FLOORS.items()
        for kind, floor in zip(("text", "image"), floors, strict=True)
        if found[name][kind] < floor
    }
    assert not low


def test_the_card_states_what_the_floors_ask():
    stated = json.loads((FOLDER / "figures.json").read_text())
    assert stated["items"] >= 400
    for name, (text, image) in FLOORS.items():
        assert stated["accuracy"][name]["text"] >= text
        assert stated["accuracy"][name]["image"] >= image


def trained_answer(trained, item, *, seen):
    """What training's own forward says, token by token behind the right ones, and whether so."""
    model, words = trained
    (rows,) = [r for r in rows_of([item], words) if (r.size is not None) == seen]
    logits, targets, weights = answer_logits(model, [(rows, torch.tensor([0]))])
    return bool(((logits.argmax(-1) == targets) | (weights == 0)).all())


@torch.inference_mode()
@pytest.mark.parametrize("seen", [True, False], ids=["pictures", "words"])
def test_the_service_reads_what_training_read(hosted, trained, seen):
    items = [item for name in TASKS for item in some(name, "held-out", 6, seed=6)]
    for item in items:
        assert right(hosted, item, seen=seen) == trained_answer(trained, item, seen=seen), item


def test_the_slot_engine_answers_as_the_model_alone(hosted):
    items = [item for name in TASKS for item in some(name, "held-out", 3, seed=7)]
    engine = engine_for(hosted, slots=6)
    try:
        told = asked_together(engine, hosted, items)
    finally:
        engine.stop()
    with torch.inference_mode():
        alone = [answered(hosted, item, seen=seen) for item in items for seen in (True, False)]
    assert told == alone
    hits = [answer == items[n // 2].answer for n, answer in enumerate(told)]
    assert sum(hits) >= 0.85 * len(hits)


def asked_together(engine, hosted, items):
    """Each item's picture and words, all at once."""
    ends, over = {}, threading.Semaphore(0)
    asked = [
        hosted.family.look(hosted, messages, pictures)
        for item in items
        for messages, pictures in ((item.in_picture, [item.picture]), (item.in_words, []))
    ]

    def tell(index, event):
        if isinstance(event, LAST):
            ends[index] = event
            over.release()

    for index, (ids, sight) in enumerate(asked):
        generation = Generation(
            id=str(index), ids=tuple(ids), sight=sight, sampling=GREEDY, max_tokens=8
        )
        engine.submit(generation, lambda event, index=index: tell(index, event))
    for _ in asked:
        assert over.acquire(timeout=120)
    assert all(isinstance(end, Finished) for end in ends.values())
    return [ends[index].text for index in range(len(asked))]


def test_it_is_small():
    size = sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file())
    assert size < 10.5 * 2**20
