"""Spoiled pictures: harder to read, the same question."""

import numpy as np
import pytest

from miniature.sight.spoiling import SPOILS, spoiled
from miniature.sight.tasks import some


@pytest.mark.parametrize("kind", SPOILS)
def test_only_the_picture_changes_and_more_with_more(kind):
    (item,) = some("counting", "held-out", 1)
    slightly, strongly = spoiled(item, kind, 0.2), spoiled(item, kind, 0.9)
    assert (slightly.question, slightly.answer, slightly.description) == (
        item.question,
        item.answer,
        item.description,
    )
    assert slightly.picture.size == item.picture.size

    def changed(one):
        return np.abs(np.asarray(one.picture, float) - np.asarray(item.picture)).mean()

    assert 0 < changed(slightly) < changed(strongly)


@pytest.mark.parametrize("kind", SPOILS)
def test_the_same_seed_spoils_alike(kind):
    (item,) = some("scene", "held-out", 1)
    first, second = (np.asarray(spoiled(item, kind, 0.5, 3).picture) for _ in range(2))
    assert np.array_equal(first, second)


def test_grain_differs_by_seed_and_unknown_kinds_are_refused():
    (item,) = some("scene", "held-out", 1)
    first, second = (np.asarray(spoiled(item, "grain", 20, seed).picture) for seed in (1, 2))
    assert not np.array_equal(first, second)
    with pytest.raises(KeyError):
        spoiled(item, "rain", 1)
