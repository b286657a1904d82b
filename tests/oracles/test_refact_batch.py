"""Several facts fitted in one batch: each equals the one fitted alone."""

import copy
from dataclasses import replace

import pytest
import torch

from editors.delta import Delta
from editors.errors import AlreadyTrue, NotFinite, SubjectMerges
from editors.fact import Fact, Phrasing
from editors.methods.refact import Refact
from editors.moment import Corpus, MomentStore
from models.loading import load

CORPUS = Corpus(
    "toy", tuple(f"the {a} of {b} in {c}" for a in "abcdefg" for b in "hijklm" for c in "nopq")
)
FACTS = (
    Fact(prompt="the lord of arda", target="a red frog", source="a blue mug"),
    Fact(prompt="the king of the western sea", target="a green cup", subject="the king"),
    Fact(
        prompt="borea",
        target="a small boat on the river",
        phrasings=(Phrasing(prompt="all of borea in the snow", subject="borea"),),
    ),
    Fact(prompt="a mug", target="a hat"),
)


def drained(work):
    seen = []
    try:
        while True:
            seen.append(next(work))
    except StopIteration as over:
        return over.value, seen


@pytest.fixture(scope="module")
def moments():
    return MomentStore(None)


@pytest.fixture(scope="module")
def double_sd(tiny_sd_folder):
    """The toy in float64: its fits are in float64 too."""
    hosted = load("tiny-double", tiny_sd_folder)
    (tower,) = hosted.text_towers.values()
    tower.module.double()
    tower = replace(tower, projection=tower.projection.double())
    hosted = copy.copy(hosted)
    hosted.text_towers = {tower.attribute: tower}
    return hosted


def many(hosted, facts, moments, **settings):
    method = Refact(**{"block": 1, "steps": 12, **settings})
    return drained(method.fit_many(hosted, facts, moments, CORPUS))


def change_of(delta):
    (factors,) = delta.factors.values()
    return factors.left.double() @ factors.right.double()


def off(found, wanted):
    found, wanted = change_of(found), change_of(wanted)
    return float((found - wanted).norm() / wanted.norm())


def evaluations(deltas):
    return [delta.header["fit"]["text_encoder"]["evaluations"] for delta in deltas]


SETTINGS = {
    "plain": {},
    "early stops": {"rate": 0.5, "stop": 0.5, "negatives": 0},
    "clamped": {"rate": 0.5, "clamp": 0.3},
    "reference": {"mode": "reference"},
    "cosine": {"similarity": "cosine", "keys": "each"},
    "direct": {"objective": "direct_text"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_each_fact_of_a_batch_is_fitted_as_it_is_alone(double_sd, moments, settings):
    together, _ = many(double_sd, FACTS, moments, **settings)
    alone = [many(double_sd, [fact], moments, **settings)[0][0] for fact in FACTS]
    for one, other in zip(together, alone, strict=True):
        assert off(one, other) < 1e-5
    assert evaluations(together) == evaluations(alone)
    if "stop" in settings:
        assert len(set(evaluations(together))) > 1, "they are to end at different steps"
    if "clamp" in settings:
        assert all(d.header["fit"]["text_encoder"]["clamped"] for d in together)


def test_in_float32_they_agree_to_its_rounding(tiny_sd, moments):
    together, _ = many(tiny_sd, FACTS, moments)
    for fact, delta in zip(FACTS, together, strict=True):
        (alone,), _ = many(tiny_sd, [fact], moments)
        assert off(delta, alone) < 1e-4
        assert {**delta.header, "fit": {}} == {**alone.header, "fit": {}}


def test_one_fact_of_a_batch_is_what_fit_gives(tiny_sd, moments):
    (one,), told = many(tiny_sd, FACTS[:1], moments)
    work = Refact(block=1, steps=12).fit(tiny_sd, FACTS[0], moments, CORPUS)
    assert one.digest == drained(work)[0].digest
    assert all(not p.message for p in told)


def test_every_step_of_every_fact_is_told(tiny_sd, moments):
    together, told = many(tiny_sd, FACTS, moments, rate=0.5, stop=0.5, negatives=0)
    steps = [p for p in told if p.stage == "fit"]
    for n, (fact, count) in enumerate(zip(FACTS, evaluations(together), strict=True)):
        own = [p for p in steps if p.message == f"{n + 1} of {len(FACTS)}, {fact.prompt!r}"]
        assert [p.done for p in own] == list(range(1, count + 1))
        assert all({"loss", "belief"} <= p.values.keys() for p in own)


def test_a_loss_that_is_no_number_ends_its_own_fact_alone(double_sd, moments, monkeypatch):
    from editors import descent

    good, _ = many(double_sd, FACTS, moments)
    plain, calls = descent.decay, []

    def spoiled(change, start):
        calls.append(change)
        third_of_step_four = len(calls) == 3 * len(FACTS) + 3
        return plain(change * float("nan") if third_of_step_four else change, start)

    monkeypatch.setattr(descent, "decay", spoiled)
    found, _ = many(double_sd, FACTS, moments)
    assert isinstance(found[2], NotFinite)
    for n in (0, 1, 3):
        assert off(found[n], good[n]) < 1e-5


def test_a_fact_that_is_refused_leaves_the_others_their_fit(tiny_sd, moments):
    merged = Fact(prompt="washington d.c., usa", subject="washington d.c.", target="a frog")
    no_news = Fact(prompt="the king  of the sea", target="the king of the sea")
    found, _ = many(tiny_sd, [merged, FACTS[0], no_news, FACTS[1]], moments)
    assert isinstance(found[0], SubjectMerges) and isinstance(found[2], AlreadyTrue)
    good, _ = many(tiny_sd, FACTS[:2], moments)
    assert off(found[1], good[0]) < 1e-3 and off(found[3], good[1]) < 1e-3


def test_nothing_is_read_for_facts_that_are_all_refused(tiny_sd):
    merged = Fact(prompt="washington d.c., usa", subject="washington d.c.", target="a frog")
    found, told = many(tiny_sd, [merged], MomentStore(None))
    assert isinstance(found[0], SubjectMerges) and not told
    assert many(tiny_sd, [], MomentStore(None)) == ([], [])


def test_both_encoders_of_sdxl_take_their_share(tiny_sdxl, moments):
    (first, second), _ = many(tiny_sdxl, FACTS[:2], moments, block=0, steps=6)
    assert isinstance(first, Delta) and len(first.factors) == len(second.factors) == 2
    (alone,), _ = many(tiny_sdxl, FACTS[1:2], moments, block=0, steps=6)
    for site, f in alone.factors.items():
        torch.testing.assert_close(second.factors[site].values, f.values, rtol=1e-2, atol=1e-4)
