"""Intervals over clusters, and the gap closed, against a loop that draws one cluster at a time."""

import numpy as np
import pytest

from evaluation.backpatch.shares import NEGLIGIBLE, Bootstrap, clustered

DRAWS = 400


def answers(seed, examples=60, ahead=0.4):
    """Three questions a cluster, right and wrong together: words, pictures, patched pictures."""
    random = np.random.default_rng(seed)
    clusters = [f"cluster {i // 3:02d}" for i in range(examples)]
    plain = np.repeat(random.random(examples // 3) < 0.4, 3).astype(float)
    words = np.maximum(plain, np.repeat(random.random(examples // 3) < ahead, 3))
    return clusters, words, plain, np.maximum(plain, random.random(examples) < 0.2)


def drawn_one_by_one(clusters, seed, statistic):
    """The statistic of each draw: whole clusters with replacement, all their examples in a row."""
    names = sorted(set(clusters))
    of = {name: [i for i, c in enumerate(clusters) if c == name] for name in names}
    random = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    return [statistic([i for at in draw for i in of[names[at]]]) for draw in random]


def test_an_interval_is_that_of_clusters_drawn_one_by_one():
    clusters, words, *_ = answers(0)
    found = Bootstrap(resamples=DRAWS, seed=3).share(clusters, words)
    means = drawn_one_by_one(clusters, 3, lambda rows: words[rows].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert (found.value, found.examples, found.clusters) == (words.mean(), 60, 20)


def test_examples_of_one_cluster_are_not_taken_for_as_many_clusters():
    clusters, words, *_ = answers(0)
    bootstrap = Bootstrap(resamples=DRAWS, seed=0)
    whole, apart = (
        bootstrap.share(names, words) for names in (clusters, [str(i) for i in range(len(words))])
    )
    assert whole.high - whole.low > 1.4 * (apart.high - apart.low)


def oracle_of_the_gap(clusters, words, plain, patched, seed):
    """(draws without a gap, ratios from the lowest to the highest, those without at both ends)."""

    def ratio(rows):
        gap = sum(words[i] - plain[i] for i in rows)
        return sum(patched[i] - plain[i] for i in rows) / gap if gap > 0 else None

    ratios = drawn_one_by_one(clusters, seed, ratio)
    known = sorted(r for r in ratios if r is not None)
    without = len(ratios) - len(known)
    return without, [-np.inf] * without + known, known + [np.inf] * without


def test_the_gap_closed_is_that_of_the_same_clusters_in_both_differences():
    clusters, words, plain, patched = answers(1)
    found = Bootstrap(resamples=DRAWS, seed=5).gap(clusters, words, plain, patched)
    without, lows, highs = oracle_of_the_gap(clusters, words, plain, patched, 5)
    assert found.without == without <= NEGLIGIBLE * DRAWS
    ends = np.percentile(lows, 2.5), np.percentile(highs, 97.5)
    assert (found.closed.low, found.closed.high) == pytest.approx(ends)
    wanted = (patched.mean() - plain.mean()) / (words.mean() - plain.mean())
    assert found.closed.value == pytest.approx(wanted)
    gaps = drawn_one_by_one(clusters, 5, lambda rows: (words - plain)[rows].mean())
    assert (found.ahead.low, found.ahead.high) == pytest.approx(
        tuple(np.percentile(gaps, [2.5, 97.5]))
    )


def a_few_without():
    """A case in which some draws have no gap, so few that an interval stands, but they matter."""
    for seed in range(200):
        told = answers(seed, ahead=0.2)
        without, lows, highs = oracle_of_the_gap(*told, 0)
        few = 0 < without <= NEGLIGIBLE * DRAWS
        if few and np.percentile(highs, 97.5) > np.percentile(highs[: DRAWS - without], 97.5):
            return told, without, lows, highs
    raise AssertionError("there is none")


def test_a_draw_without_a_gap_lies_outside_both_ends_and_is_told():
    told, without, lows, highs = a_few_without()
    found = Bootstrap(resamples=DRAWS, seed=0).gap(*told)
    assert (found.without, found.draws, found.reason) == (without, DRAWS, None)
    ends = np.percentile(lows, 2.5), np.percentile(highs, 97.5)
    assert (found.closed.low, found.closed.high) == pytest.approx(ends)
    assert found.closed.high > np.percentile(highs[: DRAWS - without], 97.5), "not left out"


def test_where_many_draws_have_no_gap_nothing_is_said_of_what_is_closed_but_why():
    clusters, _, plain, patched = answers(2)
    words = plain.copy()
    words[:3], plain[:3] = 1, 0  # only the first cluster is told better than it is seen
    found = Bootstrap(resamples=DRAWS, seed=0).gap(clusters, words, plain, patched)
    assert found.closed is None and found.without > NEGLIGIBLE * DRAWS
    assert f"{found.without} of {DRAWS}" in found.reason
    assert found.ahead.low <= found.ahead.value <= found.ahead.high
    level = Bootstrap(resamples=DRAWS, seed=0).gap(clusters, plain, plain, patched)
    assert (level.closed, level.without) == (None, DRAWS)
    assert level.reason == "words do no better than pictures"


def test_what_shows_one_thing_in_common_is_one_cluster_however_long_the_chain():
    shown = [("a", "b"), ("c",), (), ("b", "d"), ("e", "c"), (), ("d",), ("alone 2",)]
    found = clustered(shown)
    assert found[0] == found[3] == found[6]
    assert found[1] == found[4]
    assert len(set(found)) == 5
