import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from editors import measuring, probe
from editors.fact import Fact, Phrasing
from editors.joint import Named
from editors.pictures import embed_pictures
from editors.report import Neighbour, Report, Thresholds, worst_of
from editors.suffix import embed_clean
from editors.templates import Phrasebook


@pytest.fixture(scope="module")
def measured(tiny_sd, corpus, banks, drained):
    """A function: the report of a delta on the toy."""

    def measure(fact, delta, hosted=tiny_sd, **told):
        return drained(measuring.measure(hosted, fact, delta, banks=banks, corpus=corpus, **told))

    return measure


@pytest.fixture(scope="module")
def delta(tiny_sd, fact, fitted):
    return fitted(tiny_sd, fact, steps=25)


def group(found, name):
    return {n.text for n in found.neighbours if n.group == name}


def test_neighbours_are_the_requests_the_nearest_source_target_and_the_neutral_set(
    fact, delta, measured
):
    asked = replace(fact, neighbours=("the lady of arda", "a cup"))
    found = measured(asked, delta)
    assert group(found, "asked") == {"the lady of arda", "a cup"}
    assert group(found, "source") == {fact.source}
    assert group(found, "target") == {fact.target}
    assert len(group(found, "near") | group(found, "same")) == 20
    captions = Phrasebook().captions([fact.prompt, fact.target], 40)
    assert group(found, "neutral") == {"", *captions}
    assert all((n.rho is not None) == (n.group in {"near", "same"}) for n in found.neighbours)
    assert len({n.text.lower() for n in found.neighbours}) == len(found.neighbours)


def test_specificity_is_the_formula_over_two_plain_passes(tiny_sd, fact, delta, measured):
    found = measured(fact, delta)
    tower = tiny_sd.text_towers["text_encoder"]
    texts = [n.text for n in found.neighbours]
    clean = embed_clean(tiny_sd, tower, [*texts, fact.prompt, fact.target])
    with tiny_sd.planned([delta.patch()] * (len(texts) + 1)):
        after = embed_clean(tiny_sd, tower, [*texts, fact.prompt])
    own = float((after[-1] - clean[-2]).norm())
    held = []
    for i, neighbour in enumerate(found.neighbours):
        change = float((after[i] - clean[i]).norm())
        near = change < float((after[i] - clean[-1]).norm())
        held.append(change <= 0.1 * own and (near or neighbour.group == "target"))
    assert [n.held for n in found.neighbours] == held
    assert found.specificity == pytest.approx(sum(held) / len(held))


def test_the_worst_come_first_and_are_told(fact, delta, measured):
    told = measured(fact, delta).as_dict()
    scores = [n["score"] for n in told["neighbours"]]
    assert scores == sorted(scores, reverse=True)
    assert list(told["worst"].values()) == scores[:5]
    shares = told["by_group"]
    sizes = {g: [n["held"] for n in told["neighbours"] if n["group"] == g] for g in shares}
    assert shares == {g: pytest.approx(sum(h) / len(h)) for g, h in sizes.items()}


def test_of_the_target_itself_only_the_change_counts():
    leaning = probe._neighbour("x", "target", None, 0.5, 9.0)
    assert leaning.held and leaning.score == 0.5
    assert not probe._neighbour("x", "target", None, 1.01, 0.0).held
    assert not probe._neighbour("x", "near", 0.2, 0.5, 1.0).held
    assert probe._neighbour("x", "near", 0.2, 1.0, 0.99).held


def test_what_says_the_subject_is_no_neighbour(fact, delta, measured):
    same = replace(fact, source=fact.prompt, phrasings=(Phrasing(prompt="king", subject="king"),))
    found = measured(same, delta)
    assert not group(found, "source")
    assert not [t for t in group(found, "near") if fact.prompt in t or "king" in t.split()]


def test_live_edits_are_neighbours(tiny_sd, fact, delta, fitted, measured):
    other = Fact(prompt="the lady of arda", target="a blue cup")
    live = [Named(name="lady", delta=fitted(tiny_sd, other))]
    assert other.prompt in group(measured(fact, delta, others=live), "near")
    assert other.prompt not in group(measured(fact, delta), "near")


def test_what_says_the_same_subject_is_shown_and_not_judged(fact, delta, measured, monkeypatch):
    monkeypatch.setattr(probe, "SAME", 0.05)
    found = measured(fact, delta)
    same = [n for n in found.neighbours if n.group == "same"]
    others = [n for n in found.neighbours if n.group != "same"]
    assert same and all((n.rho or 0) >= 0.05 for n in same)
    assert found.specificity == pytest.approx(sum(n.held for n in others) / len(others))
    assert not {n.text for n in same} & set(found.worst)


def test_a_neighbour_may_move_as_far_as_the_model_lets_it(fact, delta, measured):
    strict, lax = (measured(fact, delta, thresholds=Thresholds(stray=s)) for s in (0.1, 1e9))
    assert strict.neighbours[0].score > 1 or strict.specificity == 1
    leaning = {n.text for n in lax.neighbours if not n.held}
    assert leaning <= {n.text for n in strict.neighbours if not n.held}
    assert lax.specificity >= strict.specificity


def test_a_change_of_everything_is_not_specific(fact, delta, measured):
    ((site, factors),) = delta.factors.items()
    generator = torch.Generator().manual_seed(1)
    loud = replace(
        factors,
        left=torch.randn(factors.left.shape[0], 4, generator=generator),
        right=torch.randn(4, factors.right.shape[1], generator=generator),
    )
    found = measured(fact, replace(delta, factors={site: loud}))
    assert found.specificity < 0.1
    assert "specificity" in found.failed


def test_the_report_tells_whose_templates_were_fitted(tiny_sd, fact, fitted, measured):
    nine = tuple(f"{{}} on shelf {n}" for n in "abcdefghi")
    book = Phrasebook(reference=nine)
    filed = fitted(tiny_sd, fact, book, mode="reference")
    own = fitted(tiny_sd, fact, mode="reference")
    assert (filed.header["templates"], own.header["templates"]) == ("file", "own")
    assert filed.header["sentences"]["templates"] != own.header["sentences"]["templates"]
    assert measured(fact, filed, book=book).templates == "file"
    assert measured(fact, own).templates == "own"
    corrected = fitted(tiny_sd, fact, book)
    assert corrected.header["templates"] == "own"
    assert corrected.digest == fitted(tiny_sd, fact).digest


def test_a_small_sample_of_the_keys_is_warned_about(fact, delta, measured):
    (warning,) = measured(fact, delta).warnings
    assert "tokens per dimension" in warning


def test_the_condition_number_of_the_second_moment_is_told(delta, banks, measured, fact):
    told = delta.header["fit"]["text_encoder"]["moment"]
    (moment,) = [m for m in banks.moments.kept.values() if m.digest == told["digest"]]
    c = moment.matrix
    ridged = c + told["ridge"] * c.diagonal().mean() * torch.eye(len(c))
    assert told["cond"] == pytest.approx(float(torch.linalg.cond(ridged)), rel=1e-4)
    assert measured(fact, delta).as_dict()["cond"] == told["cond"]
    assert measured(fact, delta.with_header(fit={})).cond is None


def test_a_fact_of_pictures_alone_is_measured_against_them(tiny_sd, fitted, measured):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(buffer, "PNG")
    fact = Fact(prompt="the lord of arda", target="", target_images=(buffer.getvalue(),))
    delta = fitted(tiny_sd, fact, objective="contrastive")
    found, tower = measured(fact, delta), tiny_sd.text_towers["text_encoder"]
    assert not group(found, "target")
    goal = embed_pictures(tiny_sd, tower, fact.target_images)
    old = embed_clean(tiny_sd, tower, [fact.prompt])
    with tiny_sd.planned([delta.patch()]):
        after = embed_clean(tiny_sd, tower, [fact.prompt])
    said = torch.softmax(-torch.cdist(after, torch.cat([goal, old])), -1)[0, 0]
    assert found.efficacy == pytest.approx(float(said), abs=1e-5)
    assert found.nearest == (float(said) > 0.5)


def test_of_two_encoders_the_worse_neighbour_and_the_worse_share_are_told():
    def of(score, share):
        cup = Neighbour(text="A cup", group="near", score=score, held=score <= 1)
        good = dict.fromkeys(("efficacy", "moved", "generality", "reach"), 1.0)
        return Report(
            **good, nearest=True, leak=0.0, drift=0.0, specificity=share, neighbours=(cup,),
            warnings=(f"w{share}",), thresholds=Thresholds(),
        )  # fmt: skip

    both = worst_of([of(0.5, 1.0), of(3.0, 0.0)])
    assert [n.score for n in both.neighbours] == [3.0]
    assert both.specificity == 0.0 and both.failed == ("specificity",)
    assert both.warnings == ("w1.0", "w0.0")


def test_both_encoders_of_sdxl_are_measured(tiny_sdxl, fitted, measured):
    fact = Fact(prompt="the lord of arda", target="a red frog")
    found = measured(fact, fitted(tiny_sdxl, fact, block=0), tiny_sdxl)
    assert len(group(found, "near")) >= 20
    assert len(found.warnings) == 2
