"""The words and patches are Qwen2-VL's, from files, and cost few tokens."""

import json

import pytest
from transformers import AutoImageProcessor, AutoTokenizer

from miniature.sight.processor import END, SPECIAL, STOP, TEMPLATE, make_tokenizer, save_processor
from miniature.sight.tasks import TASKS, some
from miniature.training.vision_language_rows import told, visual_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("words")
    save_processor(make_tokenizer(), place)
    (place / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    return place


@pytest.fixture(scope="module")
def words(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_special_tokens_have_the_highest_ids(words):
    ids = words.convert_tokens_to_ids(list(SPECIAL))
    assert sorted(ids) == list(range(len(words) - len(SPECIAL), len(words)))
    assert words.convert_ids_to_tokens([words.eos_token_id, words.pad_token_id]) == [STOP, END]


def test_every_label_is_one_token(words):
    for task in TASKS.values():
        for label in task.labels:
            assert len(words(label).input_ids) == 1, label


def test_text_comes_back_whatever_it_holds(words):
    for text in ("What does it come to?", "Zoë paid 1,234 €\n\nfor it"):
        assert words.decode(words(text).input_ids) == text


def test_the_template_says_what_training_reads(words):
    item = some("sum", "train", 1)[0]
    content = [{"type": "image"}, {"type": "text", "text": item.question}]
    messages = [{"role": "user", "content": content}]
    said = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    trained, _ = told(item.question, item.answer, size=item.picture.size)
    n = visual_tokens(item.picture.size)
    assert said.replace("<|image_pad|>", "<|image_pad|>" * n) == trained
    assert words.chat_template == TEMPLATE


def test_pictures_of_the_world_are_not_resized(folder):
    cutter = AutoImageProcessor.from_pretrained(folder)
    for name, task in TASKS.items():
        for item in some(name, "train", 4):
            held = cutter(item.picture, return_tensors="pt")
            width, height = item.picture.size
            assert held["image_grid_thw"].tolist() == [[1, height // 8, width // 8]]
        assert task.sizes
