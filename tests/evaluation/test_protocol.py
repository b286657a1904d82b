import json

import numpy as np
import pytest

from evaluation.errors import ProtocolDiffers
from evaluation.protocol import Case, Done, Journal, Outcome, Score, bootstrap, estimate

CASE = Case(key="0: a", kind="role", prompt="a", target="b", probes=())


def score(*, case="0: a", seed=0, correct=True, probe=0, arm="edited"):
    return Score(
        case=case,
        arm=arm,
        probe=probe,
        part="efficacy",
        tag="",
        prompt="a",
        seed=seed,
        best="b",
        right=0.9,
        wrong=0.1,
        correct=correct,
        picture="0" * 64,
    )


def done(case=CASE):
    outcome = Outcome(case=case.key, edit="a@1", digest="d", seconds=1.5)
    return Done(case=case, outcome=outcome, scores=(score(case=case.key),))


def test_a_journal_that_is_opened_again_knows_what_was_done(tmp_path):
    Journal(tmp_path / "j.jsonl", {"seeds": [0]}).add(done())
    assert Journal(tmp_path / "j.jsonl", {"seeds": [0]}).done(CASE) == done()


def test_lines_of_a_case_that_was_cut_short_are_dropped(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path, {"seeds": [0]}).add(done())
    whole = path.read_text()
    other = Case(key="1: c", kind="role", prompt="c", target="b", probes=())
    Journal(path, {"seeds": [0]}).add(done(other))
    path.write_text(path.read_text()[:-20])  # its scores, then half an outcome
    again = Journal(path, {"seeds": [0]})
    assert again.done(CASE) and again.done(other) is None
    assert path.read_text() == whole


def test_a_journal_begun_under_other_settings_is_not_continued(tmp_path):
    Journal(tmp_path / "j.jsonl", {"seeds": [0], "model": "x"}).add(done())
    with pytest.raises(ProtocolDiffers, match="model"):
        Journal(tmp_path / "j.jsonl", {"seeds": [0], "model": "y"})


def test_every_line_of_a_journal_names_seed_picture_and_case(tmp_path):
    Journal(tmp_path / "j.jsonl", {"seeds": [0]}).add(done())
    header, line, outcome = map(json.loads, (tmp_path / "j.jsonl").read_text().splitlines())
    assert header == {"format": 1, "seeds": [0]}
    assert {"seed", "picture", "case", "arm", "best"} <= set(line)
    assert outcome["digest"] == "d"


def test_a_kept_picture_comes_back_with_the_same_pixels(tmp_path):
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    path = Journal(tmp_path / "j.jsonl", {}).keep(picture)
    assert (np.asarray(Image.open(path)) == picture).all()


def test_an_interval_holds_the_mean_and_narrows_with_more_rows():
    draw = np.random.default_rng(3)
    widths = []
    for n in (10, 1000):
        values = (draw.random(n) < 0.8).astype(float)
        low, high = bootstrap([str(i) for i in range(n)], values)
        assert low <= values.mean() <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 4


def test_pictures_of_one_row_stand_and_fall_together():
    values = np.array([1.0] * 50 + [0.0] * 50)
    low, high = bootstrap(["a"] * 50 + ["b"] * 50, values)
    assert (low, high) == (0.0, 1.0)  # two rows are two observations, not a hundred


def test_the_deviation_is_that_of_the_means_per_seed():
    scores = [score(seed=s, case=c) for s in (0, 1) for c in ("a", "b")]
    found = estimate(scores, [1, 1, 1, 0])
    assert found.value == 0.75
    assert found.deviation == pytest.approx(0.25)
    assert (found.rows, found.pictures) == (2, 4)
