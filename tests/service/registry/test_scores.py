import threading

import pytest

from service.registry import errors
from service.registry.limits import Limits
from service.registry.records import FeatureScore, Measure

SAE = "5" * 64


def measure(settings="a" * 64, fingerprint="f" * 64):
    return Measure(fingerprint=fingerprint, sae=SAE, settings=settings)


def score(feature, output_score=0.5, **more):
    given = {"peak": 0.6, "rank": 3, "p_max_before": 0.2, "p_max_after": 0.7, "a_max": 4.0}
    return FeatureScore(
        feature=feature, output_score=output_score, tokens=(1, 2), **{**given, **more}
    )


def test_scores_come_back_as_they_were_put(registry):
    kept = [score(0), score(7, None, peak=None, reason="the logits are not finite")]
    registry.scores.put(measure(), kept, {"s": 10})
    assert registry.scores.get(measure(), [0, 7, 9]) == {0: kept[0], 7: kept[1]}
    assert registry.scores.scored(measure()) == {0, 7}


def test_scores_of_other_weights_or_settings_are_not_mixed_up(registry):
    registry.scores.put(measure(), [score(1)], {})
    for other in (measure("b" * 64), measure(fingerprint="e" * 64)):
        assert registry.scores.get(other, [1]) == {}
        assert registry.scores.scored(other) == frozenset()
        assert registry.scores.best(other).items == ()
        assert registry.scores.coverage(other, [0.1]).scored == 0


def test_a_feature_that_is_scored_again_has_the_new_score_only(registry):
    registry.scores.put(measure(), [score(1, 0.1), score(2, 0.2)], {})
    registry.scores.put(measure(), [score(1, 0.9)], {})
    assert registry.scores.get(measure(), [1, 2]) == {1: score(1, 0.9), 2: score(2, 0.2)}


def test_more_features_than_one_statement_takes(registry):
    registry.scores.put(measure(), [score(f) for f in range(1201)], {})
    assert len(registry.scores.get(measure(), range(2000))) == 1201


def test_the_best_come_first_in_pages_without_gaps(registry):
    given = [score(f, (f % 4) / 10) for f in range(20)] + [score(99, None)]
    registry.scores.put(measure(), given, {})
    wanted = [s.feature for s in sorted(given[:-1], key=lambda s: (-s.output_score, s.feature))]
    found, after = [], None
    while True:
        page = registry.scores.best(measure(), 3, after)
        found += [s.feature for s in page.items]
        if not page.has_more:
            break
        after = page.next_cursor
    assert found == wanted
    assert {s.feature % 4 for s in registry.scores.best(measure(), least=0.2).items} == {2, 3}
    with pytest.raises(errors.BadPage):
        registry.scores.best(measure(), 3, "x:y")


def test_coverage_counts_what_reaches_a_threshold(registry):
    given = [score(0, 0.0), score(1, 0.01), score(2, 0.5), score(3, None)]
    registry.scores.put(measure(), given, {})
    told = registry.scores.coverage(measure(), [0.01, 0.1])
    assert (told.scored, dict(told.reach)) == (4, {0.01: 2, 0.1: 1})


def test_the_oldest_scores_make_room(opened):
    registry = opened(Limits(score_sets=2))
    for settings in ("a" * 64, "b" * 64, "c" * 64):
        registry.scores.put(measure(settings), [score(1)], {})
    assert registry.scores.get(measure("a" * 64), [1]) == {}
    assert registry.scores.get(measure("c" * 64), [1]) == {1: score(1)}


def test_two_that_score_the_same_features_at_once_agree(opened):
    barrier, failed = threading.Barrier(4), []

    def put(registry, order):
        barrier.wait()
        try:
            registry.scores.put(measure(), [score(f) for f in order], {})
        except Exception as error:  # noqa: BLE001
            failed.append(error)

    orders = [range(300), range(299, -1, -1)] * 2
    threads = [threading.Thread(target=put, args=(opened(), order)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert opened().scores.scored(measure()) == frozenset(range(300))
