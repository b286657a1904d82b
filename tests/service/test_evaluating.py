"""Evaluations through REST, on a tiny random pipeline: real requests, real fits, real pictures."""

import json

import numpy as np
import pytest

from evaluation.errors import ProtocolDiffers
from evaluation.facts import Drawing, FactSettings, evaluate_facts
from evaluation.judge import Verdict
from evaluation.protocol import Case, Journal, Probe
from service.asking import evenly, pixels
from service.evaluating import ServiceSide, _header, _runs


def brightness(pictures, answers):
    """A judge that needs no training: is the picture light or dark?"""
    assert len(pictures) == len(answers)
    seen = ["light" if p.mean() > 127 else "dark" for p in pictures]
    return [Verdict(best=s, probabilities={s: 1.0}) for s in seen]


def case(target, *, row=0):
    probes = tuple(
        Probe(part=part, prompt=prompt, right="light", wrong="dark", oracle=target)
        for part, prompt in (
            ("efficacy", "a red mug"),
            ("generality", "a red mug at the beach"),
            ("specificity", "a boat"),
        )
    )
    return Case(
        key=f"{row}: {target}", kind="look", prompt="a red mug", target=target, probes=probes
    )


def drained(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_pictures_come_back_in_the_order_of_the_wishes(tiller):
    side = ServiceSide(tiller, "tiny", steps=2, options={"steps": 8, "rate": 0.3})
    wishes = [
        Drawing(prompt=prompt, seed=seed)
        for prompt in ("a red mug", "a boat")
        for seed in (0, 1, 5)
    ]
    pictures = list(side.draw(wishes))
    for wish, picture in zip(wishes, pictures, strict=True):
        (alone,) = side.draw([wish])
        assert (picture == alone).all(), wish
    assert len({p.tobytes() for p in pictures}) == len(wishes)


def test_a_fitted_case_is_drawn_with_its_version(tiller):
    side = ServiceSide(tiller, "tiny", steps=2, options={"steps": 8, "rate": 0.3})
    fitted = drained(side.fit(case("a green frog")))
    assert fitted.edit.startswith("evaluation@")
    assert len(fitted.digest) == 64
    edited, plain = side.draw(
        [Drawing(prompt="a red mug", seed=3, edit=fitted.edit), Drawing(prompt="a red mug", seed=3)]
    )
    assert (edited != plain).any()


def test_a_fact_that_the_service_refuses_is_counted_and_the_run_goes_on(tiller, tmp_path):
    side = ServiceSide(tiller, "tiny", steps=2, options={"steps": 8, "rate": 0.3})
    cases = [case("a red mug", row=0), case("a green frog", row=1)]  # the first is its own prompt
    journal = Journal(tmp_path / "scores.jsonl", {})
    settings = FactSettings(seeds=(0, 1))
    report = drained(evaluate_facts(cases, side.draw, side.fit, brightness, journal, settings))
    assert list(report.refused) == ["0: a red mug"]
    assert len(report.done) == 2
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert sum(line.get("line") == "outcome" for line in lines) == 2
    first = [s for s in report.done[0].scores if s.part == "specificity"]
    assert {s.picture for s in first if s.arm == "edited"} == {
        s.picture for s in first if s.arm == "base"
    }


def test_a_folder_of_another_denoiser_is_not_continued(tiller, bench, tmp_path, monkeypatch):
    def begun(steps=None):
        header = _header(tiller, "tiny", None, None, FactSettings(), steps)
        return Journal(tmp_path / "scores.jsonl", header).header

    header = begun()
    card = tiller.models.show("tiny")
    for key in ("fingerprint", "pipeline", "dtype", "denoiser_dtype", "mode", "steps"):
        assert header[key] == card[key]
    assert begun(card["steps"]) == header  # the same steps, told or not
    with pytest.raises(ProtocolDiffers, match="another steps"):
        begun(card["steps"] + 1)
    monkeypatch.setattr(bench.host("tiny").ready, "pipeline", "0" * 64)
    with pytest.raises(ProtocolDiffers, match="another pipeline"):
        begun()


def test_seeds_in_a_row_travel_together():
    wishes = [Drawing(prompt="a", seed=s) for s in (0, 1, 2, 7, 8)]
    wishes += [Drawing(prompt="b", seed=9), Drawing(prompt="b", seed=10, edit="x@1")]
    assert [len(group) for group in _runs(wishes)] == [3, 2, 1, 1]
    assert [w for group in _runs(wishes) for w in group] == wishes
    assert max(map(len, _runs([Drawing(prompt="a", seed=s) for s in range(30)]))) <= 10


def test_a_limit_spreads_over_the_file():
    cases = [case(str(i), row=i) for i in range(10)]
    assert [c.key for c in evenly(cases, 3)] == ["0: 0", "3: 3", "6: 6"]
    assert evenly(cases, None) == cases == evenly(cases, 99)


def test_a_png_becomes_the_pixels_that_it_was_made_of():
    from service.hosting import png_of

    picture = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    assert (pixels(png_of(picture)) == picture).all()
