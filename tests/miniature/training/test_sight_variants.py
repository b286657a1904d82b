"""Variants read first and see later: what a stage may change, and what it leaves as it was."""

import json
import sys

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from miniature import weights_path
from miniature.sight.processor import make_tokenizer
from miniature.sight.tasks import some
from miniature.training import sight_variants
from miniature.training.sight_variants import (
    JOINING,
    MERGER,
    TOWER,
    Variant,
    deepen,
    take_tower,
    train,
)
from miniature.training.vision_language import Pupil
from miniature.training.vision_language_model import Shape, answer_logits, small_qwen
from miniature.training.vision_language_rows import rows_of

SMALL = Variant(
    layers=2,
    width=48,
    tasks="feeling,scene",
    drawn=60,
    words=0.4,
    merger=0.4,
    report=60,
    judged=4,
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def states(folder):
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float16).state_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variant")
    return folder, list(train(folder, SMALL))


def test_the_merger_learns_and_nothing_else_does(tokenizer):
    pupil = Pupil.begin(tokenizer, "cpu", JOINING, SMALL.shape, MERGER)
    before = {name: value.clone() for name, value in pupil.model.state_dict().items()}
    rows = next(r for r in rows_of(some("scene", "train", 20), tokenizer) if r.size is not None)
    losses = [float(pupil.step([(rows, torch.arange(len(rows)))], 0.1)) for _ in range(6)]
    changed = {n for n, v in pupil.model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {name for name in before if name.startswith(MERGER)}
    assert losses[-1] < losses[0]


def test_stages_follow_each_other_and_load(trained):
    folder, told = trained
    assert [one["stage"] for one in told] == ["words", "merger"]
    assert set(told[0]["accuracy"]["scene"]) == {"text"}
    words, merger, shipped = map(
        states, (folder / "words", folder / "merger", weights_path("vision-language"))
    )
    for name, value in words.items():
        if ".merger.mlp." in name and "weight" in name:
            assert not torch.equal(value, merger[name])
        if not name.startswith(MERGER):
            assert torch.equal(value, merger[name])
        if name.startswith(TOWER) and not name.startswith(MERGER):
            assert torch.equal(value, shipped[name])
    card = json.loads((folder / "merger" / "card.json").read_text())
    assert card["settings"]["learns"] == MERGER and card["settings"]["image_share"] == 1.0
    assert card["earlier"]["settings"]["text_first"] == 1.0


def test_what_is_there_is_not_made_again(trained):
    folder, _ = trained
    assert list(train(folder, SMALL)) == []


def test_the_last_stage_lets_everything_learn(tmp_path):
    stages = list(Variant(whole=5.0).lessons(tmp_path))
    assert [name for name, _, _ in stages] == ["words", "merger", "whole"]
    assert [learns for _, _, learns in stages] == ["", MERGER, ""]
    assert stages[2][1].start.endswith("merger") and stages[2][1].seconds == 5


def test_shares_are_of_the_tasks_that_are_taught():
    shares = Variant(tasks="counting,sum").shares
    assert sum(shares.values()) == pytest.approx(1) and shares["sum"] == 2 * shares["counting"]


@torch.no_grad()
def test_a_deepened_model_says_nearly_the_same(tokenizer, tmp_path):
    torch.manual_seed(0)
    picked = [(r, torch.arange(4)) for r in rows_of(some("scene", "train", 40), tokenizer)]
    shallow = small_qwen(tokenizer, Shape(layers=2, width=48)).eval()
    shallow.save_pretrained(tmp_path)
    said, apart = answer_logits(shallow, picked)[0], []
    for times in (1, 2):
        deep = small_qwen(tokenizer, Shape(layers=2 * times, width=48)).eval()
        deepen(deep, tmp_path)
        apart.append((answer_logits(deep, picked)[0] - said).norm())
    for layer in shallow.model.language_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    without = (answer_logits(shallow, picked)[0] - said).norm()
    assert apart[0] < 1e-4 and 0 < apart[1] < 0.4 * without


def test_layers_that_do_not_multiply_are_refused(tokenizer, trained):
    model = small_qwen(tokenizer, Shape(layers=3, width=48))
    with pytest.raises(ValueError, match="3 layers cannot be made of 2"):
        deepen(model, trained[0] / "words")


def test_another_tower_is_refused(tokenizer):
    model = small_qwen(tokenizer, Shape(layers=1, width=48, depth=1))
    with pytest.raises(ValueError, match=r"blocks\.1"):
        take_tower(model, weights_path("vision-language"))


def test_the_command_line(tmp_path, monkeypatch, capsys):
    options = {"layers": 1, "width": 48, "tasks": "scene", "drawn": 60, "merger": 0.0}
    options |= {"words": 0.2, "report": 60, "judged": 2, "out": tmp_path, "device": "cpu"}
    argv = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["sight_variants", *argv])
    sight_variants.main()
    (told,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert told["stage"] == "words" and (tmp_path / "words" / "model.safetensors").exists()
