"""Plans of back-patching: many from one clean pass, chosen on some examples, reported on others."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.backpatch.calibration import Book, CalibrationSettings, calibrate, check
from evaluation.backpatch.example import Example, prepare
from evaluation.backpatch.report import calibration_markdown, write_calibration
from evaluation.backpatch.search import answers, rounds, within
from evaluation.backpatch.sweep import Place, Sweep, grid, right
from evaluation.errors import UnusableExamples
from models.family import FAMILIES
from models.loading import load

LAYERS = 4
PLACES = grid(LAYERS, (1, 3))
LABELS = ("cat", "dog", "house", "tree", "red", "blue", "green", "man", "woman", "king", "of")


def picture(seed):
    pixels = np.random.RandomState(seed).randint(0, 255, (48, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def asked(*parts):
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return [{"role": "user", "content": content}]


def example(number, answer="cat", labels=LABELS, **changes):
    words = f"photo {number}"
    stated = {
        "id": str(number),
        "messages": asked("is this ", None, f" a man {number}"),
        "pictures": [picture(number)],
        "answer": answer,
        "labels": labels,
        "described": asked(f"is this {words} a man {number}"),
        "description": words,
    }
    return Example(**(stated | changes))


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl", "gemma3"])
def hosted(request, tmp_path_factory):
    hosted = load("tiny", FAMILIES[request.param].tiny(tmp_path_factory.mktemp(request.param)))
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    hosted = load("tiny", FAMILIES["qwen2_vl"].tiny(tmp_path_factory.mktemp("qwen")))
    yield hosted
    hosted.close()


def one_by_one(hosted, case, place, tokens):
    """The plan as a request has it: a forward of its own, in which the detour is made."""
    patch = place.method().plan(hosted).patch.placed({"visual": case.columns})
    shown = case.shown(hosted)
    with hosted.planned([patch]):
        return hosted.family.logits(
            hosted, torch.tensor([tokens]), [] if shown is None else [shown]
        )[0]


@pytest.mark.parametrize("form", ["image", "text"])
@pytest.mark.parametrize("metric", ["label", "exact"])
def test_every_plan_of_a_sweep_has_the_logits_of_a_request_of_its_own(hosted, form, metric):
    case = getattr(
        prepare(hosted, [example(1, "red cat", labels=(*LABELS, "red cat"))], metric), form
    )[0]
    sweep = Sweep(hosted, metric, rows=3)
    clean = sweep.clean(case)
    hits = sweep.answers(case, clean, PLACES)
    behind = slice(len(case.ids) - 1, len(case.ids) + len(case.answer)) if metric == "exact" else -1
    moved = []
    for place in PLACES:
        wanted = one_by_one(hosted, case, place, clean.tokens)[behind].reshape(
            len(clean.logits), -1
        )
        ours = sweep.logits(case, clean, [place])[0]
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
        assert hits[place] == bool(right(case, metric, wanted))
        moved.append(float((wanted - clean.logits).abs().max()))
    assert min(moved) > 1e-3


def test_the_words_that_stand_for_the_picture_are_found(qwen):
    case = prepare(qwen, [example(7)], "label").text[0]
    said = qwen.family.detokenize(qwen, [case.ids[c] for c in case.columns])
    assert said.strip() == "photo 7"


def test_exact_means_the_whole_answer_and_its_end(qwen):
    case = prepare(qwen, [example(1, "red cat")], "exact").image[0]
    case = replace(case, answer=(5, 6), ends=frozenset({9}))
    logits = torch.zeros(4, 3, 12)
    for plan, said in enumerate(((5, 6, 9), (5, 6, 8), (5, 7, 9), (4, 6, 9))):
        for at, token in enumerate(said):
            logits[plan, at, token] = 1
    assert right(case, "exact", logits).tolist() == [True, False, False, False]


def test_a_label_is_chosen_among_the_labels_only(qwen):
    case = prepare(qwen, [example(1, "dog")], "label").image[0]
    logits = torch.zeros(1, qwen.family.vocab_size(qwen))
    logits[0, 0] = 9  # no label
    logits[0, case.answer[0]] = 1
    assert bool(right(case, "label", logits))


def drained(run):
    stages = []
    while True:
        try:
            stages.append(next(run))
        except StopIteration as done:
            return done.value, stages


@pytest.fixture(scope="module")
def planted(qwen):
    """Examples of two labels each: one plan says one of them, all others and none the other."""
    place, found = Place(source=3, target=0), []
    sweep = Sweep(qwen, "label")
    for number in range(48):
        case = prepare(qwen, [example(number)], "label").image[0]
        clean = sweep.clean(case)
        others = [p for p in grid(LAYERS, (1,)) if p != place]
        by_plan = [sweep.logits(case, clean, [p])[0, 0] for p in (place, *others)]
        found.append(example(number, *_only(qwen, torch.stack([*by_plan, clean.logits[0]]))))
    return place, found


def _only(hosted, logits):
    """(right, labels): of all pairs of words the one that the first row alone decides otherwise."""
    said = [(t, w) for t in range(logits.shape[1]) if (w := _word(hosted, t)) is not None]
    those = logits[:, [token for token, _ in said]]
    apart = those[:, :, None] - those[:, None, :]  # how far one is ahead of the other
    margin = torch.minimum(apart[0], (-apart[1:]).amin(dim=0))
    best, other = divmod(int(margin.argmax()), len(said))
    assert margin.max() > 0
    words = said[best][1], said[other][1]
    return words[0], tuple(sorted(words))


def _word(hosted, token):
    word = hosted.family.detokenize(hosted, [token])
    again = hosted.family.tokenize(hosted, word, special=False) if word.strip() else []
    return word if again == [token] else None


SETTINGS = CalibrationSettings(windows=(1,), first=0.25, keep=0.34)


def test_a_plan_that_is_right_is_found_and_reported_on_examples_that_did_not_choose(qwen, planted):
    place, examples = planted
    book = Book()
    report, stages = drained(calibrate(qwen, examples, SETTINGS, book))
    assert report.image.place == place
    assert report.image.patched.value == 1
    assert report.image.helps and "helps" in report.verdict
    assert report.image.gain.examples == 24
    assert report.image.gain.value == pytest.approx(1 - report.image.plain.value)
    assert report.answered < report.full_grid
    assert {p.stage for p in stages} >= {"choosing (image), round 1", "reporting (text)"}
    tried = {t.place: t for t in report.image.tried}
    assert set(tried) == set(grid(LAYERS, (1,)))
    assert tried[report.image.place].accuracy == 1
    assert tried[report.image.place].examples == 24
    assert min(t.examples for t in tried.values()) == 6


def test_questions_about_one_picture_choose_together_or_are_reported_together(qwen, planted):
    _, examples = planted
    shown = [replace(one, shows=(f"picture {i // 3}",)) for i, one in enumerate(examples)]
    settings = replace(SETTINGS, places=(Place(source=2, target=0), Place(source=3, target=1)))
    book = Book()
    report, _ = drained(calibrate(qwen, shown, replace(settings, first=1.0, control=False), book))
    [other] = {f"{p.source}>{p.target}w1" for p in settings.places if p != report.image.place}
    chose = {key.rpartition("/")[2] for key in book.answers if f"/{other}/" in key}
    assert len(chose) == 24 == report.image.gain.examples
    pictures = [{one.id for one in shown[first : first + 3]} for first in range(0, 48, 3)]
    assert all(ids <= chose or not ids & chose for ids in pictures)
    same = [replace(one, shows=("one",)) for one in examples]
    with pytest.raises(UnusableExamples, match="48 examples of 1 pictures"):
        drained(calibrate(qwen, same, settings))


def test_a_budget_of_answers_is_kept():
    assert answers(rounds(100, 64, 0.125, 0.25)) == 100 * 8 + 25 * 24 + 6 * 32
    for most in (5000, 1000, 300, 70):
        left, found = within(range(100), 64, first=0.125, keep=0.25, most=most, seed=0)
        assert answers(found) <= most
        assert found[0].plans == len(left) and found[-1].seen == 64
    left, found = within(range(100), 64, first=1.0, keep=0.25, most=None, seed=0)
    assert len(left) == 100 and answers(found) == 6400


def test_a_small_budget_draws_some_of_the_plans(qwen, planted):
    _, examples = planted
    report, _ = drained(calibrate(qwen, examples, replace(SETTINGS, most=40)))
    assert sum(t.examples for t in report.image.tried) <= 40
    assert 1 <= len(report.image.tried) < len(grid(LAYERS, (1,)))
    assert report.image.place in {t.place for t in report.image.tried}
    left_out = len(grid(LAYERS, (1,))) - len(report.image.tried)
    assert report.image.left_out == left_out > 0
    assert f"{left_out} of {len(grid(LAYERS, (1,)))} plans were left out by lot (image)" in (
        calibration_markdown(report)
    )


def test_a_budget_that_one_plan_alone_exceeds_is_refused(planted):
    _, examples = planted
    check(examples, replace(SETTINGS, most=24))
    with pytest.raises(UnusableExamples, match="may ask for 23 answers") as caught:
        check(examples, replace(SETTINGS, most=23))
    assert caught.value.param == "search.answers"


def test_the_whole_grid_is_never_less_than_what_was_asked(qwen, planted):
    _, examples = planted
    everything = replace(SETTINGS, places=(Place(source=3, target=0),), first=1.0)
    report, _ = drained(calibrate(qwen, examples, everything))
    assert report.answered == report.full_grid
    assert "left out" not in calibration_markdown(report)


def test_where_nothing_helps_it_says_so(qwen):
    drawn = np.random.default_rng(0)
    examples = [example(n, str(drawn.choice(LABELS))) for n in range(32)]
    report, _ = drained(calibrate(qwen, examples, SETTINGS))
    assert not report.image.helps
    assert "No plan" in report.verdict or "harms" in report.verdict


def test_a_run_that_broke_goes_on_where_it_was_and_ends_as_if_it_had_not(
    qwen, planted, monkeypatch
):
    _, examples = planted
    whole, _ = drained(calibrate(qwen, examples, SETTINGS))
    book, told = Book(), dict[str, bool]()
    run = calibrate(qwen, examples, SETTINGS, book)
    while len(book.answers) <= 30:
        told |= getattr(next(run), "answers", {})
    run.close()
    assert told == book.answers, "each step tells what it found"
    again = Book(answers=json.loads(json.dumps(book.answers)))
    count = {"clean": 0}
    clean = Sweep.clean

    def counted(self, case):
        count["clean"] += 1
        return clean(self, case)

    monkeypatch.setattr(Sweep, "clean", counted)
    rest, _ = drained(calibrate(qwen, examples, SETTINGS, again))
    assert replace(rest, seconds=0.0) == replace(whole, seconds=0.0)
    broken = count["clean"]
    count["clean"] = 0
    drained(calibrate(qwen, examples, SETTINGS, again))
    assert count["clean"] == 0 < broken


def test_examples_that_cannot_be_used_are_named(qwen, planted):
    _, examples = planted
    bad = [example(100, "zebra"), example(101, labels=("cat",)), example(102, "")]
    bad.append(example(103, messages=asked(None, "say <|image_pad|>")))  # plays a picture
    bad.append(example(104, messages=asked(None, "the king of arda " * 300)))
    bad.append(example(105, pictures=[Image.new("RGB", (1, 400))]))  # the processor refuses it
    report, _ = drained(calibrate(qwen, [*examples, *bad], SETTINGS))
    assert {d.id for d in report.dropped} == {str(100 + n) for n in range(6)}
    with pytest.raises(UnusableExamples, match="4 at least"):
        drained(calibrate(qwen, examples[:6], SETTINGS))
    nowhere = replace(SETTINGS, places=(Place(source=9, target=0),))
    with pytest.raises(UnusableExamples, match="nowhere"):
        drained(calibrate(qwen, examples, nowhere))


def test_a_report_is_written_as_numbers_a_page_and_pictures(qwen, planted, tmp_path):
    _, examples = planted
    report, _ = drained(calibrate(qwen, examples, SETTINGS))
    told, page, *plots = write_calibration(report, tmp_path)
    assert json.loads(told.read_text())["verdict"] == report.verdict
    assert report.verdict in page.read_text()
    widths = [Image.open(io.BytesIO(plot.read_bytes())).size[0] for plot in plots]
    assert len(widths) == 2
    assert min(widths) > 200
