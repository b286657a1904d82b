"""Tasks, calibrated one by one, on one page beside the paper."""

import json
from dataclasses import replace

import pytest

from evaluation.backpatch.calibration import Book, CalibrationSettings, calibrate
from evaluation.backpatch.shares import Share
from evaluation.backpatch.study import Studied, study
from evaluation.backpatch.study_report import PAPER_TASKS, study_markdown, write_study
from evaluation.errors import NothingToJudge
from models.family import FAMILIES
from models.loading import load
from tests.evaluation.backpatch.test_alignment import drained
from tests.evaluation.backpatch.test_calibration import PLACES, example

SETTINGS = CalibrationSettings(places=PLACES, resamples=200)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    hosted = load("tiny", FAMILIES["qwen2_vl"].tiny(tmp_path_factory.mktemp("studied")))
    yield hosted
    hosted.close()


def tasks():
    counted = [example(n, answer="cat" if n % 2 else "dog") for n in range(10)]
    plain = [example(n, described=None, description=None) for n in range(20, 30)]
    return [
        Studied(name="how many", examples=counted, paper="counting"),
        Studied(name="no words", examples=plain),
    ]


@pytest.fixture(scope="module")
def books():
    return {}


@pytest.fixture(scope="module")
def report(hosted, books):
    return drained(study(hosted, tasks(), SETTINGS, books=books, header={"model": "tiny"}))


def test_a_task_is_what_its_calibration_says(hosted, report):
    alone = drained(calibrate(hosted, tasks()[0].examples, SETTINGS))
    found = report.findings[0].calibration
    assert replace(found, seconds=0, answered=0) == replace(alone, seconds=0, answered=0)
    ahead = alone.text.plain.value - alone.image.plain.value
    assert found.gap.ahead.value == pytest.approx(ahead)


def test_without_words_there_is_no_control_and_nothing_to_align(report):
    one = report.findings[1]
    assert (one.calibration.text, one.calibration.gap, one.alignment) == (None, None, None)
    assert report.findings[0].alignment.examples == 10


def test_what_is_known_is_not_asked_again(hosted, books, report, monkeypatch):
    assert set(books) == {"how many", "no words"}
    known = {name: Book(answers=dict(book.answers)) for name, book in books.items()}

    def never(*_):
        raise AssertionError("it was answered before")

    monkeypatch.setattr("evaluation.backpatch.sweep.Sweep.clean", never)
    again = drained(study(hosted, tasks(), SETTINGS, books=known, aligned=0))
    assert [one.calibration.image for one in again.findings] == [
        one.calibration.image for one in report.findings
    ]


def test_the_verdict_names_what_helps(report):
    def gained(value):
        side = report.findings[0].calibration.image
        share = Share(value=value, low=value - 0.02, high=value + 0.02, examples=5, clusters=5)
        found = replace(report.findings[0].calibration, image=replace(side, gain=share))
        return replace(report, findings=(replace(report.findings[0], calibration=found),))

    assert gained(0.1).verdict.endswith("back-patching helps in 1: how many.")
    assert gained(0.01).verdict.endswith("helps in none of them.")


def test_a_study_is_written_with_the_papers_numbers_beside_it(report, tmp_path):
    written = write_study(report, tmp_path)
    assert all(file.stat().st_size for file in written)
    assert {"accuracy.png", "alignment.png", "study.json", "study.md"} <= {f.name for f in written}
    told = json.loads((tmp_path / "study.json").read_text())
    assert [one["name"] for one in told["findings"]] == ["how many", "no words"]
    assert "tried" not in told["findings"][0]["image"]
    assert (tmp_path / "how-many" / "calibration.json").exists()
    page = study_markdown(report)
    assert "79.3 / 70.8 → 75.0 ± 1.9 (20→15 w3)" in page and '"model": "tiny"' in page
    assert page.count("| no words |") == 1, "neither control, nor paper, nor alignment"


def test_the_papers_gap_closed_is_what_the_specification_counts():
    every = [told for models in PAPER_TASKS.values() for told in models]
    gains = [told.patched - told.image for told in every]
    assert sum(gains) / len(gains) == pytest.approx(4.7, abs=0.05)
    kept = [
        (told.patched - told.image) / (told.text - told.image)
        for told in every
        if told.text > told.image
    ]
    ratios = [ratio for ratio in kept if ratio <= 1]
    assert (len(ratios), sum(ratios) / len(ratios)) == (12, pytest.approx(0.342, abs=0.003))


def test_without_tasks_there_is_nothing_to_judge(hosted):
    with pytest.raises(NothingToJudge):
        drained(study(hosted, [], SETTINGS))
