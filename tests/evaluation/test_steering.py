"""Steering success: halves are kept apart, filters are subsets, and a whole run on a tiny model."""

import dataclasses
import json
import math

import pytest
import torch

from evaluation.errors import NothingToJudge
from evaluation.steering import coherence, evaluate_steering
from evaluation.steering_report import steering_markdown, write_steering
from evaluation.steering_result import (
    Depth,
    Result,
    SteeringReport,
    SteeringSettings,
    Way,
    labels_found,
)
from evaluation.steering_ways import (
    Topic,
    depth_of,
    direction_ways,
    feature_ways,
    read_dictionary,
)
from evaluation.topics import Labelled, TopicJudge
from evaluation.writing import Asked, Text, Writer
from models.families.llama import FAMILY
from models.loading import load
from models.patch import Patch, Shift
from steerers.activation import JumpReLU
from steerers.dictionary import Dictionary

SEA = ("the waves of the sea", "a ship on the sea", "sailors love the sea", "the sea and its waves")
SNOW = ("snow in winter", "the winter brings snow", "cold snow fell", "snow and ice in winter")
NOTHING = ("one two three", "a man said yes", "two and three", "yes said the man", "one man")


def labelled():
    told = [Labelled(text=t, topics=("sea",)) for t in SEA]
    told += [Labelled(text=t, topics=("winter",)) for t in SNOW]
    return told + [Labelled(text=t) for t in NOTHING]


@pytest.fixture(scope="module")
def judge():
    return TopicJudge.trained(labelled())


def test_the_judge_knows_what_a_text_is_about(judge):
    seen = judge.probabilities(["a ship on the waves", "snow and ice", "one man said yes"])
    assert seen[0, judge.column("sea")] > 0.5 > seen[0, judge.column("winter")]
    assert seen[1, judge.column("winter")] > 0.5 > seen[1, judge.column("sea")]
    assert (seen[2] < 0.5).all()
    assert judge.measured(labelled()) == {"recall": 1.0, "false_alarms": 0.0}


def test_without_topics_there_is_no_judge():
    with pytest.raises(NothingToJudge):
        TopicJudge.trained([Labelled(text="a b"), Labelled(text="b a")])


def test_coherence_is_likelihood_times_variety():
    assert coherence((1, 2, 3, 4), 10.0, 10.0) == 1.0
    assert coherence((1, 2, 3, 4), 5.0, 10.0) == 1.0
    assert coherence((1, 2, 3, 4), 40.0, 10.0) == 0.25
    assert coherence((7, 7, 7, 7, 7), 10.0, 10.0) == 0.25  # one pair, four times
    assert coherence((), math.inf, 10.0) == 0.0


class Scripted:
    """A writer whose texts depend on the strength alone; `good` per opener's place."""

    def __init__(self, good):
        self.good = good

    def tokens(self, text):
        return (len(text),)

    def write(self, asked):
        return [self._one(a) for a in asked]

    def _one(self, a: Asked):
        strength = sum(float(o.vector[0]) for o in a.patch if isinstance(o, Shift))
        about = self.good(strength, a.seed)
        return Text(text="the waves of the sea" if about else "one two three", ids=(1, 2, 3, 4))

    def perplexities(self, texts):
        return [10.0] * len(texts)


def way(**changes):
    def patch(strength):
        return Patch((Shift(site="lm.block.0", vector=torch.tensor([strength]), positions="all"),))

    told = {"topic": "sea", "kind": "feature", "name": "f", "strengths": (1.0, 2.0)}
    return Way(**(told | {"patch": patch} | changes))


def test_one_half_of_the_openers_chooses_and_the_other_is_reported(judge):
    settings = SteeringSettings(openers=("a", "bb", "ccc", "dddd"))
    # Strength 1 is right where it is chosen, strength 2 where it is told: 1 must win, and fail.
    good = {1.0: (0, 2), 2.0: (1, 3)}
    writer = Scripted(lambda s, seed: seed in good.get(s, ()))
    chance, [result] = evaluate_steering([way()], writer, judge, settings)
    assert chance["sea"] == 0.0
    assert (result.strength, result.chosen_by, result.success, result.score) == (1.0, 1.0, 0.0, 0.0)


def test_nothing_to_try_is_refused(judge):
    with pytest.raises(NothingToJudge):
        evaluate_steering([], Scripted(bool), judge, SteeringSettings())


def result(topic, score, *, kind="feature", output=None, read=None):
    return Result(
        topic=topic,
        kind=kind,
        name=f"{topic}-{score}",
        site="lm.block.0",
        output_score=output,
        input_score=read,
        strength=1.0,
        chosen_by=score,
        score=score,
        success=score,
        coherence=1.0,
        hits=0.0,
        sample="a text",
    )


@pytest.fixture
def report():
    results = (
        result("sea", 0.8, output=0.5),
        result("sea", 0.2, output=0.001, read=0.9),
        result("winter", 0.2, output=0.0, read=0.9),
        result("winter", 0.6, kind="direction"),
        result("sea", 0.1, kind="direction"),
        result("sea", 0.5, kind="direction"),
    )
    depth = Depth(dictionary="d-topk", layer=0, depth=0.5, output=(0.5, 0.0), input=(None, 0.9))
    return SteeringReport(
        header={"model": "m"},
        settings=SteeringSettings(),
        topics=("sea", "winter"),
        plain={"sea": 0.0, "winter": 0.1},
        results=results,
        depths=(depth,),
    )


def test_filters_are_subsets_with_their_coverage_beside_them(report):
    lines = {line.name: line for line in report.lines}
    plain = lines["SAE features, unfiltered"]
    assert plain.score.value == pytest.approx((0.5 + 0.2) / 2)  # topics count alike
    assert (plain.topics, plain.kept, plain.ratio) == (2, 1.0, None)
    strong = lines["output score >= 0.1"]
    assert (strong.score.value, strong.topics) == (0.8, 1)
    assert strong.kept == pytest.approx(1 / 3)
    assert strong.ratio[0] == pytest.approx(0.8 / 0.35)
    assert lines["input score >= 0.1"].score.value == pytest.approx(0.2)
    assert lines["mean-difference vector"].score.value == pytest.approx(0.55)  # 0.5 was chosen
    assert lines["prompting"].score is None


def test_features_that_were_seen_to_steer_are_labelled_with_what_they_do_best():
    def named(name, topic, score):
        return dataclasses.replace(result(topic, score), name=name)

    results = [named("d/3", "sea", 0.9), named("d/3", "winter", 0.6), named("e/1", "sea", 0.4)]
    results.append(dataclasses.replace(named("d/4", "sea", 0.9), coherence=0.1))
    assert labels_found(results) == {"d": {3: "sea"}}


def test_the_report_on_paper_says_the_same(report, tmp_path):
    told, page, picture = write_steering(report, tmp_path)
    assert json.loads(told.read_text())["lines"][2]["score"]["value"] == 0.8
    assert "| output score >= 0.1 | 0.800 [0.800, 0.800] |" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Unsteered, 5.0 %" in steering_markdown(report)


def test_a_whole_run_on_a_tiny_model(tmp_path, judge):
    hosted = load("tiny", FAMILY.tiny(tmp_path / "llama"))
    width, drawn = hosted.family.stream_width(hosted, "lm"), torch.Generator().manual_seed(0)
    rows = torch.randn(24, width, generator=drawn)
    dictionary = Dictionary(
        id="tiny-jumprelu",
        site="lm.block.0",
        format="test",
        encoder=rows.mT.contiguous(),
        encoder_bias=torch.zeros(24),
        decoder=rows,
        decoder_bias=torch.zeros(width),
        activation=JumpReLU(torch.full((24,), 0.1)),
    )
    topics = [Topic(name="sea", about="the sea"), Topic(name="winter", about="winter")]
    settings = SteeringSettings(
        openers=("one", "two"), tokens=3, strengths=(0.5, 1.0), norms=(0.5,)
    )
    one = read_dictionary(hosted, dictionary, topics, labelled())
    assert one.active.shape == (2, 24)
    assert depth_of(hosted, one).depth == 1 / len(hosted.towers["lm"])
    ways = [
        *feature_ways(hosted, topics, [one], settings, each=2),
        *direction_ways(hosted, topics, labelled(), ["lm.block.0"], settings),
    ]
    assert [w.kind for w in ways] == ["feature"] * 4 + ["direction"] * 2
    with Writer(hosted, slots=4) as writer:
        _, results = evaluate_steering(ways, writer, judge, settings)
        again = evaluate_steering(ways, writer, judge, settings)[1]
    assert results == again  # the same seeds, the same texts
    assert all(0 <= r.score <= 1 and 0 < r.coherence <= 1 for r in results)
