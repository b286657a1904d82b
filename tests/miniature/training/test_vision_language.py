"""What trains the vision-language model computes what the library's class computes."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

from miniature import weights_path
from miniature.sight.processor import make_tokenizer
from miniature.sight.tasks import TASKS, some
from miniature.training.muon import BatchedMuon
from miniature.training.vision_language import (
    FIRST_ROUND,
    SECOND_ROUND,
    SHARES,
    Course,
    Lesson,
    Pupil,
    accuracy,
    held_out_rows,
    save,
    schedule,
    train,
)
from miniature.training.vision_language_model import (
    Shape,
    answer_logits,
    positions,
    small_qwen,
)
from miniature.training.vision_language_rows import drawn_rows, rows_of, spelled, told

TINY = Shape(layers=2, width=64, heads=2, inner=128)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def tiny(tokenizer):
    torch.manual_seed(0)
    model = small_qwen(tokenizer, TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at birth, so that pictures matter
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def folder(tiny, tokenizer, tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    save(tiny, tokenizer, place, {"steps": 0})
    return place


def whole(model, folder, item):
    """The library's way: files, processor, `forward`; logits where the answer stands."""
    words, cutter = (
        AutoTokenizer.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    prompt, answer = told(item.question, item.answer, size=item.picture.size)
    ids, n = words(prompt + answer, return_tensors="pt").input_ids, len(words(answer).input_ids)
    logits = model(
        input_ids=ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        **cutter(item.picture, return_tensors="pt"),
    ).logits
    return logits[0, -n - 1 : -1]


@torch.no_grad()
@pytest.mark.parametrize("name", TASKS)
def test_training_sees_what_the_saved_model_sees(name, folder, tokenizer):
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for item in some(name, "train", 3):
        rows = next(r for r in rows_of([item], tokenizer) if r.size is not None)
        logits, targets, weights = answer_logits(model, [(rows, torch.tensor([0]))])
        expected = whole(model, folder, item)
        n = len(expected)
        assert torch.allclose(logits[0, :n], expected, atol=1e-5)
        assert (weights[0] > 0).sum() == n
        assert tokenizer.decode(targets[0, : n - 1]) == item.answer


@torch.inference_mode()
def test_another_picture_changes_the_logits(tiny, tokenizer):
    first, second = (
        next(r for r in rows_of([i], tokenizer) if r.size == (64, 64))
        for i in [i for i in some("scene", "train", 20) if i.picture.size == (64, 64)][:2]
    )
    a, b = (answer_logits(tiny, [(r, torch.tensor([0]))])[0][0, 0] for r in (first, second))
    assert (a - b).abs().max() > 1e-3


@torch.inference_mode()
def test_a_mixed_batch_equals_its_rows_alone(tiny, tokenizer):
    rows = rows_of(some("counting", "train", 6) + some("sum", "train", 6), tokenizer)
    together, targets, _ = answer_logits(tiny, [(r, torch.arange(len(r))) for r in rows])
    alone = [
        answer_logits(tiny, [(r, torch.tensor([i]))])[0][0] for r in rows for i in range(len(r))
    ]
    live = targets != 0
    assert torch.allclose(together[live], torch.stack(alone)[live], atol=1e-5)


def test_positions_are_the_librarys(tiny, tokenizer):
    for name in TASKS:
        item = some(name, "train", 1)[0]
        prompt, _ = told(item.question, item.answer, size=item.picture.size)
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        width, height = item.picture.size
        expected, _ = tiny.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == tiny.config.image_token_id).int(),
            image_grid_thw=torch.tensor([[1, height // 8, width // 8]]),
        )
        assert torch.equal(positions(item.picture.size, "cpu")[:, : ids.shape[1]], expected[:, 0])


def test_a_saved_model_answers(folder):
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    words, cutter = (
        AutoTokenizer.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    item = some("person", "held-out", 1)[0]
    prompt, _ = told(item.question, item.answer, size=item.picture.size)
    ids = words(prompt, return_tensors="pt").input_ids
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        max_new_tokens=3,
        **cutter(item.picture, return_tensors="pt"),
    )
    assert said.shape[1] <= ids.shape[1] + 3
    assert json.loads((folder / "card.json").read_text()) == {"steps": 0}


def test_a_few_steps_learn(tokenizer):
    lesson = Lesson(batch=24)
    rows = rows_of(some("scene", "train", 200), tokenizer)
    torch.manual_seed(0)
    pupil = Pupil.begin(tokenizer, "cpu", lesson, TINY)
    losses = []
    for step in range(12):
        picked = [(r, torch.randint(len(r), (12,))) for r in rows]
        losses.append(float(pupil.step(picked, 0.1 + 0.01 * step)))
    assert losses[-1] < 0.6 * losses[0]


def test_a_batch_in_parts_is_the_batch(tokenizer):
    picked = [(r, torch.arange(2)) for r in rows_of(some("scene", "train", 30), tokenizer)]
    pupil = Pupil.begin(tokenizer, "cpu", Lesson(), TINY)
    whole = sum(rows.weights[index].sum() for rows, index in picked)
    together = float(pupil._backward(picked, whole))
    grads = [p.grad.clone() for p in pupil.model.parameters()]
    pupil.model.zero_grad(set_to_none=True)
    apart = sum(float(pupil._backward([one], whole)) for one in picked)
    assert apart == pytest.approx(together, rel=1e-2)
    for parameter, grad in zip(pupil.model.parameters(), grads, strict=True):
        assert (parameter.grad - grad).norm() < 0.05 * grad.norm() + 1e-6


def test_accuracy_counts_whole_answers(tiny, tokenizer):
    held = held_out_rows(tokenizer, 4)
    found = accuracy(tiny, held, "cpu")
    assert set(found) == set(TASKS)
    assert all(set(one) == {"text", "image"} for one in found.values())


def test_text_comes_first(tokenizer):
    rows = rows_of([i for name in TASKS for i in some(name, "train", 4)], tokenizer)
    course = Course(rows, Lesson(batch=64), "cpu", SHARES)
    assert all(r.size is None for r, _ in course.picked(0, 0.0))
    mixed = course.picked(0, 0.5)
    seen = sum(len(index) for r, index in mixed if r.size is not None)
    assert 0.5 < seen / sum(len(index) for _, index in mixed) < 0.8


def test_heads_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="do not fit"):
        small_qwen(tokenizer, Shape(width=100, heads=6))


def test_the_rate_rises_and_falls():
    assert schedule(0.0, 0.02) < 0.1 and schedule(1.0, 0.02) == pytest.approx(0)
    assert schedule(0.02, 0.02) > 0.95 > schedule(0.5, 0.02)


def test_some_pictures_are_to_be_read_aloud(tokenizer):
    rows = drawn_rows({"sum": 500}, tokenizer, workers=1)
    light = sum(int(((r.weights[:, 0] > 0) & (r.weights[:, 0] < 1)).sum()) for r in rows if r.size)
    assert 40 < light < 120
    assert sum(len(r) for r in rows if r.size is None) == 500


def test_a_row_that_is_too_long_is_refused(tokenizer):
    with pytest.raises(ValueError, match="too long"):
        spelled(*told("red " * 80, "red"), tokenizer)


def test_batched_muon_is_torchs():
    torch.manual_seed(0)
    one = [torch.nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    two = [torch.nn.Parameter(p.detach().clone()) for p in one]
    mine = BatchedMuon(one, 0.02)
    theirs = torch.optim.Muon(two, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(one, two, strict=True):
            a.grad = torch.randn(6, 4)
            b.grad = a.grad.clone()
        mine.step()
        theirs.step()
    for a, b in zip(one, two, strict=True):
        assert torch.allclose(a, b, atol=2e-3)


def test_the_whole_lesson_writes_a_folder_that_loads(tmp_path):
    lesson = Lesson(seconds=2, batch=12, drawn=0.001, judged=6, report=60)
    told_lines = list(train(tmp_path, device="cpu", workers=1, lesson=lesson, shape=TINY))
    assert told_lines[-1]["steps"] >= 1
    loaded = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float16 and len(loaded.model.language_model.layers) == 2


def test_a_second_round_goes_on_and_its_card_keeps_the_first(folder, tiny, tmp_path):
    lesson = Lesson(
        seconds=1, batch=12, drawn=0.001, judged=4, report=60, start=str(folder), seed=7
    )
    lesson = replace(lesson, rate=1e-6, muon_rate=1e-6)
    told_lines = list(train(tmp_path, device="cpu", workers=1, lesson=lesson, shape=TINY))
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["earlier"] == {"steps": 0} and card["seed"] == 7
    assert "earlier" not in told_lines[-1]
    after = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    for mine, theirs in zip(after.parameters(), tiny.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=5e-3)


def test_the_shipped_rounds_are_those_of_the_card():
    card = json.loads((weights_path("vision-language") / "card.json").read_text())
    for one, lesson in ((card["earlier"], FIRST_ROUND), (card, SECOND_ROUND)):
        stated = {**asdict(lesson), **asdict(Shape())}
        assert {**one["settings"], "start": ""} == stated
