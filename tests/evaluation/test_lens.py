"""The lens's protocol on made-up pictures: what is seen at a layer is written into the pixels."""

import json

import numpy as np
import pytest

from evaluation.errors import NothingToJudge, ProtocolDiffers
from evaluation.judge import Verdict
from evaluation.lens import (
    ALL_RIGHT,
    LensCase,
    LensJournal,
    LensSettings,
    Question,
    evaluate_lens,
)
from evaluation.lens_report import lens_markdown, orderings, write_lens

LAYERS = (0, 1, 2, 3, 4)
THING, COLOUR, WHO = (Question(question=q, right=q) for q in ("object", "colour", "identity"))


def case(prompt, *questions, group="simple", **more):
    return LensCase(key=prompt, prompt=prompt, group=group, questions=questions, **more)


class Encoder:
    """Knows of each prompt from which layer on which question is right; `looks` counts its work."""

    def __init__(self, known, edited=None):
        self.known, self.edited, self.looks = known, edited or {}, []

    def draw(self, looks):
        for look in looks:
            self.looks.append(look)
            known = self.edited if look.edits else self.known
            yield [
                self.picture(known[look.prompt], layer, seed)
                for layer in look.layers
                for seed in look.seeds
            ]

    @staticmethod
    def picture(known, layer, seed):
        flat = np.zeros((4, 4, 3), dtype=np.uint8)
        flat[0, 0] = seed
        for place, question in enumerate((THING, COLOUR, WHO), start=1):
            first = known.get(question.question, 99)
            first = first[seed] if isinstance(first, tuple) else first
            flat[place] = layer >= first
        return flat


def judge(pictures, questions):
    places = {"object": 1, "colour": 2, "identity": 3}
    seen = [bool(p[places[q.question]].any()) for p, q in zip(pictures, questions, strict=True)]
    return [
        Verdict(best=q.right if s else "", probabilities={q.right: float(s)})
        for s, q in zip(seen, questions, strict=True)
    ]


def run(cases, encoder, folder, **changes):
    settings = LensSettings(**{"layers": LAYERS, **changes})
    header = {"layers": list(settings.layers), "seeds": list(settings.seeds)}
    steps = evaluate_lens(
        cases, encoder.draw, judge, LensJournal(folder / "lens.jsonl", header), settings
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


MUG, PAIR = (
    case("a red mug", THING, COLOUR),
    case("a mug and a car", THING, COLOUR, group="compound"),
)
KNOWN = {"a red mug": {"object": 1, "colour": 2}, "a mug and a car": {"object": 2, "colour": 4}}


def values(curve):
    return [e.value for e in curve.shares]


def test_a_curve_is_the_share_of_right_pictures_at_each_layer(tmp_path):
    report = run([MUG, PAIR], Encoder(KNOWN), tmp_path)
    assert values(report.curve("all", "object")) == [0, 0.5, 1, 1, 1]
    assert values(report.curve("simple", "colour")) == [0, 0, 1, 1, 1]
    assert values(report.curve("compound", "colour")) == [0, 0, 0, 0, 1]
    assert report.curve("all", "identity") is None


def test_all_right_needs_every_question_of_the_same_picture(tmp_path):
    known = {"a red mug": {"object": (0, 3), "colour": (3, 0)}}
    report = run([MUG], Encoder(known), tmp_path)
    assert values(report.curve("all", "object")) == [0.5, 0.5, 0.5, 1, 1]
    assert values(report.curve("all", ALL_RIGHT)) == [0, 0, 0, 1, 1]


def test_prompts_are_grouped_by_frequency_and_kind(tmp_path):
    people = [
        case("Tolin", WHO, frequency="common", kind="person"),
        case("Rura", WHO, frequency="rare", kind="person"),
    ]
    known = {"Tolin": {"identity": 2}, "Rura": {"identity": 4}}
    report = run(people, Encoder(known), tmp_path)
    assert report.curve("common", "identity").halfway.layer == 2
    assert report.curve("rare", "identity").halfway.layer == 4
    assert values(report.curve("kind: person", "identity")) == [0, 0, 0.5, 0.5, 1]


def test_half_way_is_the_first_layer_with_half_of_the_final_share(tmp_path):
    known = {"a": {"object": (1, 4)}, "b": {"object": (3, 99)}, "c": {}, "d": {"object": (4, 99)}}
    report = run([case(name, THING) for name in known], Encoder(known), tmp_path)
    curve = report.curve("all", "object")
    assert values(curve) == [0, 1 / 8, 1 / 8, 2 / 8, 4 / 8]
    assert curve.halfway.layer == 3
    assert curve.halfway.low <= 3 <= curve.halfway.high


def test_what_is_never_right_has_no_half_way(tmp_path):
    report = run([case("a", THING)], Encoder({"a": {}}), tmp_path)
    assert report.curve("all", "object").halfway.layer is None


def test_intervals_are_over_whole_prompts(tmp_path):
    known = {"a": {"object": 0}, "b": {}}
    report = run([case(n, THING) for n in known], Encoder(known), tmp_path, seeds=tuple(range(9)))
    share = report.curve("all", "object").shares[0]
    assert (share.value, share.low, share.high) == (0.5, 0.0, 1.0)
    assert (share.rows, share.pictures) == (2, 18)


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    first, second = Encoder(KNOWN), Encoder(KNOWN)
    run([MUG], first, tmp_path)
    report = run([MUG, PAIR], second, tmp_path)
    assert [look.prompt for look in second.looks] == ["a mug and a car"]
    whole = run([MUG, PAIR], Encoder(KNOWN), tmp_path / "new")
    assert report.curves == whole.curves
    again = Encoder(KNOWN)
    assert run([MUG, PAIR], again, tmp_path).curves == whole.curves
    assert again.looks == []


def test_a_run_that_is_given_up_keeps_what_was_finished_and_stops_drawing(tmp_path):
    ended = []

    class Watched(Encoder):
        def draw(self, looks):
            try:
                yield from super().draw(looks)
            finally:
                ended.append(True)

    journal = LensJournal(tmp_path / "lens.jsonl", {})
    steps = evaluate_lens(
        [MUG, PAIR], Watched(KNOWN).draw, judge, journal, LensSettings(layers=LAYERS)
    )
    next(steps), next(steps)
    steps.close()
    assert ended == [True]
    assert journal.done(MUG) and journal.done(PAIR) is None


def test_a_journal_begun_with_other_layers_is_not_continued(tmp_path):
    run([MUG], Encoder(KNOWN), tmp_path)
    with pytest.raises(ProtocolDiffers, match="layers"):
        run([MUG], Encoder(KNOWN), tmp_path, layers=(0, 4))


def test_a_case_that_was_cut_short_is_judged_again(tmp_path):
    run([MUG, PAIR], Encoder(KNOWN), tmp_path)
    path = tmp_path / "lens.jsonl"
    path.write_text(path.read_text()[:-9])
    again = Encoder(KNOWN)
    run([MUG, PAIR], again, tmp_path)
    assert [look.prompt for look in again.looks] == ["a mug and a car"]


def test_edits_are_drawn_beside_the_unedited_model(tmp_path):
    known, edited = {"Arda": {"identity": 0}}, {"Arda": {"identity": 3}}
    report = run([case("Arda", WHO)], Encoder(known, edited), tmp_path, edits=("arda@1",))
    assert values(report.curve("all", "identity")) == [1, 1, 1, 1, 1]
    assert values(report.curve("all", "identity", "edited")) == [0, 0, 0, 1, 1]
    assert report.curve("all", "identity", "edited").halfway.layer == 3
    assert "## With the edits" in lens_markdown(report)


def test_nothing_to_judge_is_refused(tmp_path):
    for n, (cases, changes) in enumerate(
        (([], {}), ([MUG], {"layers": ()}), ([MUG], {"seeds": ()}))
    ):
        with pytest.raises(NothingToJudge):
            run(cases, Encoder(KNOWN), tmp_path / str(n), **changes)


def test_the_papers_order_is_looked_for_and_said(tmp_path):
    report = run([MUG, PAIR], Encoder(KNOWN), tmp_path)
    told = {o.claim: o.verdict for o in orderings(report)}
    assert told["an object before the colours of a compound"] == "as in the paper"
    other = {"a red mug": {"object": 4, "colour": 1}, "a mug and a car": {"object": 1, "colour": 1}}
    report = run([MUG, PAIR], Encoder(other), tmp_path / "other")
    told = {o.claim: o.verdict for o in orderings(report)}
    assert told["an object before the colours of a compound"] == "the other way"
    assert told["a colour before the same in a compound"] == "same layer"


def test_the_report_is_written_as_json_page_and_curves(tmp_path):
    report = run([MUG, PAIR], Encoder(KNOWN), tmp_path)
    told, page, curves = write_lens(report, tmp_path / "out")
    plain = json.loads(told.read_text())
    assert plain["layers"] == list(LAYERS) and plain["cases"] == 2
    assert {"arm", "of", "question", "shares", "halfway"} <= set(plain["curves"][0])
    text = page.read_text()
    assert "| compound (1) | colour | 0 [0, 0] | 0 [0, 0] |" in text
    assert "What the paper found" in text
    assert curves.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
