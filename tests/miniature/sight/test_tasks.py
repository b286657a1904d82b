"""The six tasks: what is asked is true of what is shown and told, and the splits never meet."""

import random

import numpy as np
import pytest

from miniature.sight.item import HELD_OUT, is_held_out, items
from miniature.sight.moods import MOODS
from miniature.sight.person import traits
from miniature.sight.sprites import face, world
from miniature.sight.tasks import TASKS, some


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_items(name):
    first, second = some(name, "train", 8, 3), some(name, "train", 8, 3)
    for a, b in zip(first, second, strict=True):
        assert (a.description, a.question, a.answer) == (b.description, b.question, b.answer)
        assert np.array_equal(np.asarray(a.picture), np.asarray(b.picture))
    assert [i.description for i in some(name, "train", 8, 4)] != [i.description for i in first]


@pytest.mark.parametrize("name", TASKS)
def test_an_item_is_small_labelled_and_of_one_of_its_sizes(name):
    task, seen = TASKS[name], set()
    for item in some(name, "train", 60):
        assert item.picture.mode == "RGB" and item.picture.size in task.sizes
        assert all(side % 16 == 0 for side in item.picture.size)
        assert 14 <= item.picture.width * item.picture.height // 256 <= 49
        assert any(item.answer.startswith(label) for label in item.labels)
        seen.add(item.picture.size)
    assert len(seen) > 1


@pytest.mark.parametrize("name", TASKS)
def test_contents_of_the_two_splits_never_meet(name):
    task, draw = TASKS[name], random.Random(0)  # noqa: S311
    contents = [task.think(draw) for _ in range(4000)]
    share = sum(map(is_held_out, contents)) / len(contents)
    assert 0.4 / HELD_OUT < share < 2 / HELD_OUT
    assert next(items(task, "held-out", 0)).split == "held-out"


def test_the_words_give_the_count():
    for item in some("counting", "train", 50):
        kind = item.question.split()[2]
        told = item.description.split()
        assert item.answer == str(sum(kind in (w, f"{w}s") for w in told))
        assert 1 <= len(told) <= 7


def test_the_words_give_the_colour_from_either_end():
    places = ("first", "second", "third", "fourth", "fifth")
    ends = set()
    for item in some("colour order", "train", 50):
        row = [told.split()[0] for told in item.description.split(", ")]
        words = item.question.rstrip("?").split()
        ends.add(words[-1])
        row = row if words[-1] == "left" else row[::-1]
        assert item.answer == row[places.index(words[4])]
    assert ends == {"left", "right"}


def test_a_sum_is_right_and_of_two_digits_each():
    for item in some("sum", "held-out", 50):
        a, b = item.description.rstrip("=").split("+")
        assert len(a) == len(b) == 2 and int(a) + int(b) == int(item.answer)


def test_four_traits_are_nobody_elses():
    looks = {p.name: set(traits(p.look)) for p in world().people}
    for item in some("person", "train", 100):
        told = set(item.description.split(", "))
        assert [name for name, has in looks.items() if told <= has] == [item.answer]


def test_every_mood_changes_a_face():
    for name in ("tolin", "peko"):
        drawn = [np.asarray(face(name, mood, 58)).astype(int) for mood in MOODS]
        for i, a in enumerate(drawn):
            for b in drawn[i + 1 :]:
                assert np.abs(a - b).sum() > 1000


def test_moods_share_no_words():
    told = [sign for signs in MOODS.values() for sign in signs]
    assert len(told) == len(set(told))
