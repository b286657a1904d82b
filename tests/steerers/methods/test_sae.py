"""What the SAE steerer plans, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch

from models.errors import MethodNotApplicable
from models.patch import Clamp, Patch, Shift
from models.site import Site
from steerers import errors
from steerers.activation import TopK
from steerers.methods.sae import SAE, SteeredFeature
from steerers.planned import Bounds, Request
from steerers.shelf import Shelf

SITE = "lm.block.1"
FREE = Request(bounds=Bounds(ratio=1e9))


@pytest.fixture(scope="module")
def shelf(decoders, dictionary_for):
    llama = decoders("llama")
    dictionary = dictionary_for(llama, SITE)
    activations = {0: 7.0, 1: 0.0, 2: 3.0}
    return Shelf.of(llama, dictionary, labels={5: "Queens, thrones"}, max_activations=activations)


@pytest.fixture(scope="module")
def shelves(shelf):
    return {"toy": shelf}


def one(feature=0, strength=None, **settings):
    features = (SteeredFeature(sae="toy", feature=feature, strength=strength),)
    return SAE(features=features, **{"on_low_score": "allow", **settings})


def only(patch):
    (operation,) = patch
    return operation


def row_of(shelf, feature):
    return shelf.dictionary.decoder[feature]


@pytest.mark.parametrize(
    ("mode", "strength", "amount"),
    [
        ("amp", 2.0, lambda shelf, _: 2.0 * shelf.neutral().a_max),
        ("amp", None, lambda shelf, _: 3.0 * shelf.neutral().a_max),
        ("amp", -1.0, lambda shelf, _: -shelf.neutral().a_max),
        ("max", 0.5, lambda *_: 0.5 * 7.0),
        ("raw", 1.5, lambda *_: 1.5),
        ("unit", 1.5, lambda _, row: 1.5 / float(row.norm())),
    ],
)
def test_what_is_added_is_the_decoder_row_in_the_modes_unit(llama, shelf, mode, strength, amount):
    planned = one(0, strength, mode=mode).plan(llama, {"toy": shelf}, FREE)
    shift, row = only(planned.patch), row_of(shelf, 0)
    assert isinstance(shift, Shift)
    assert (shift.site, shift.positions) == (SITE, "last_and_generated")
    torch.testing.assert_close(shift.vector, amount(shelf, row) * row)


def test_a_feature_that_was_seen_and_never_active_counts_as_axbenchs_fifty(llama, shelves):
    planned = one(1, 1.0, mode="max").plan(llama, shelves, FREE)
    torch.testing.assert_close(only(planned.patch).vector, 50.0 * row_of(shelves["toy"], 1))


def test_features_of_one_site_become_one_vector(llama, shelf, shelves):
    features = [SteeredFeature(sae="toy", feature=f, strength=s) for f, s in ((0, 1.0), (2, -2.0))]
    asked = SAE(features=tuple(features), mode="raw", on_low_score="allow")
    planned = asked.plan(llama, shelves)
    vector = row_of(shelf, 0) - 2 * row_of(shelf, 2)
    torch.testing.assert_close(only(planned.patch).vector, vector)
    assert planned.report["sites"][0]["vector_norm"] == pytest.approx(float(vector.norm()))


def test_dictionaries_of_two_sites_steer_both(llama, shelf, dictionary_for):
    other = Shelf.of(llama, dictionary_for(llama, "lm.block.2", seed=3))
    features = tuple(SteeredFeature(sae=name, feature=0, strength=1.0) for name in ("toy", "far"))
    planned = SAE(features=features, mode="raw", on_low_score="allow").plan(
        llama, {"toy": shelf, "far": other}
    )
    assert sorted(o.site for o in planned.patch) == [SITE, "lm.block.2"]
    assert [s["layer"] for s in planned.report["sites"]] == [1, 2]


@pytest.mark.parametrize(
    ("mode", "strength", "value", "verb"),
    [
        ("clamp", 4.0, 4.0, "set"),
        ("min_clamp", 4.0, 4.0, "min"),
        ("multiply", 0.5, 0.5, "multiply"),
        ("ablate", None, 0.0, "multiply"),
    ],
)
def test_clamps_carry_what_computes_the_activation(llama, shelf, mode, strength, value, verb):
    planned = one(2, strength, mode=mode).plan(llama, {"toy": shelf}, FREE)
    clamp, feature = only(planned.patch), shelf.dictionary.feature(2)
    assert isinstance(clamp, Clamp)
    assert (clamp.mode, clamp.value, clamp.threshold) == (verb, value, feature.threshold)
    assert torch.equal(clamp.encoder, feature.encoder)
    assert torch.equal(clamp.decoder, feature.decoder) and clamp.encoder_bias == feature.bias


@pytest.mark.parametrize(("unit", "scale"), [("a_max", None), ("max", 7.0)])
def test_a_clamps_value_may_count_in_other_units(llama, shelf, unit, scale):
    planned = one(0, 0.5, mode="clamp", clamp_in=unit).plan(llama, {"toy": shelf}, FREE)
    assert only(planned.patch).value == pytest.approx(0.5 * (scale or shelf.neutral().a_max))


@pytest.mark.parametrize(
    ("mode", "strength", "g"),
    [
        ("clamp", 4.0, lambda a: torch.full_like(a, 4.0)),
        ("min_clamp", 2.0, lambda a: a.clamp(min=2.0)),
        ("multiply", 3.0, lambda a: 3.0 * a),
        ("ablate", None, torch.zeros_like),
    ],
)
def test_a_clamp_moves_the_stream_by_the_change_of_the_activation(llama, shelf, mode, strength, g):
    """The delta is tested, not the code: encoding again does not give the value in general."""
    feature = int(shelf.dictionary.encode(stream_of(llama, Patch())[-1]).argmax())
    patch = one(feature, strength, mode=mode, positions="all").plan(llama, {"toy": shelf}, FREE)
    before, after = stream_of(llama, Patch()), stream_of(llama, patch.patch)
    a = shelf.dictionary.encode(before)[:, feature].double()
    wanted = (g(a) - a)[:, None] * row_of(shelf, feature).double()
    torch.testing.assert_close(after.double() - before.double(), wanted, atol=1e-4, rtol=1e-4)


def stream_of(hosted, patch):
    ids = torch.tensor([hosted.family.tokenize(hosted, "the king of arda")])
    with hosted.planned([patch]), hosted.captured(SITE) as seen:
        hosted.family.logits(hosted, ids)
    return seen[SITE][0][0].clone()


def test_the_vector_that_is_planned_is_the_one_that_was_scored(llama, shelf):
    """With the score's own factor, a patched forward of the neutral prompt gives the score's p."""
    planned = one(9, 10.0).plan(llama, {"toy": shelf}, FREE)
    ids = llama.family.tokenize(llama, "From my experience,")
    patch = planned.patch.within(0, len(ids), len(ids))
    with llama.planned([patch]) as run:
        logits = llama.family.logits(llama, torch.tensor([ids]))[0, -1]
    assert run.tokens_changed(0) == 1
    score = shelf.scores([9])[9]
    p = logits.double().softmax(0)
    assert float(p[list(score.tokens)].max()) == pytest.approx(score.peak, abs=1e-4)


def test_the_report_says_what_was_chosen(llama, shelf):
    report = one(0, 2.0).plan(llama, {"toy": shelf}, FREE).report
    (site,), (feature,) = report["sites"], report["features"]
    neutral, row = shelf.neutral(), row_of(shelf, 0)
    norm = 2.0 * neutral.a_max * float(row.norm())
    assert site["vector_norm"] == pytest.approx(norm, rel=1e-5)
    assert site["stream_norm"] == neutral.stream_norm
    assert site["ratio"] == pytest.approx(norm / neutral.stream_norm, rel=1e-5)
    assert (site["site"], site["layer"]) == (SITE, Site.parse(SITE).block)
    assert feature["output_score"] == shelf.scores([0])[0].output_score
    assert feature["a_max"] == neutral.a_max
    assert feature["sae_digest"] == shelf.dictionary.digest
    assert report["mode"] == "amp" and report["warnings"]


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ("last_and_generated", ((3,), "generated")),
        ("all", ((1, 3), "generated")),
        ("prompt", ((1, 3),)),
        ("generated", ("generated",)),
    ],
)
def test_marks_in_the_prompt_are_left_alone(llama, shelves, positions, wanted):
    request = Request(prompt=(1, 50, 2, 60), special=frozenset({1, 2}), bounds=FREE.bounds)
    asked = one(0, 1.0, mode="raw", positions=positions, skip_special=True)
    patch = asked.plan(llama, shelves, request).patch
    assert {o.positions for o in patch} == set(wanted)
    assert len({float(o.vector.sum()) for o in patch}) == 1


def test_a_prompt_that_ends_with_a_mark_is_steered_from_the_first_new_token(llama, shelves):
    request = Request(prompt=(1, 50, 2), special=frozenset({1, 2}), bounds=FREE.bounds)
    asked = one(0, 1.0, mode="raw", skip_special=True)
    assert only(asked.plan(llama, shelves, request).patch).positions == "generated"


def test_a_may_be_the_requests_own(llama, shelf):
    ids = tuple(llama.family.tokenize(llama, "the king of arda"))
    request = Request(prompt=ids, bounds=FREE.bounds)
    planned = one(0, 2.0, a_max="prompt").plan(llama, {"toy": shelf}, request)
    stream = stream_of(llama, Patch())
    a_max = shelf.dictionary.a_max(stream[-1])
    assert a_max != pytest.approx(shelf.neutral().a_max)
    torch.testing.assert_close(only(planned.patch).vector, 2 * a_max * row_of(shelf, 0))
    (site,) = planned.report["sites"]
    assert site["stream_norm"] == pytest.approx(float(stream[-1].norm()), rel=1e-4)


# --- concepts ------------------------------------------------------------------------------------


@pytest.fixture
def wide(monkeypatch):
    """The toy has a few features: all twenty lens places of each count."""
    monkeypatch.setattr("steerers.search._FEWEST", 20)


def word_of(llama, shelf):
    """A word that some feature's lens promotes, and what a search for it finds."""
    from steerers.search import search

    for word in ("king", "arda", "cat", "house", "red", "president", "dog", "tree", "photo"):
        found = search(llama, word, shelf.index(), shelf.scores)
        if len(found.kept) > 1 and found.kept[0][1].output_score > 0:
            return word, found
    raise AssertionError("no feature writes any of the toy's words")


@pytest.mark.usefixtures("wide")
def test_a_concept_becomes_its_best_features(llama, shelf):
    word, found = word_of(llama, shelf)
    asked = SAE(concept=word, count=2, strength=1.0, mode="raw", min_output_score=0.0)
    planned = asked.plan(llama, {"toy": shelf}, FREE)
    best = [c.feature for c, _ in found.kept[:2]]
    assert [f["feature"] for f in planned.report["features"]] == best
    assert planned.report["concepts"][0]["coverage"] == 1.0
    torch.testing.assert_close(only(planned.patch).vector, row_of(shelf, best).sum(0))


@pytest.mark.usefixtures("wide")
def test_a_concept_passes_over_what_is_not_permitted_and_says_so(llama, shelf):
    word, found = word_of(llama, shelf)
    first, second, third = (c.feature for c, _ in found.kept[:3])
    asked = SAE(concept=word, count=2, strength=1.0, mode="raw", min_output_score=0.0)

    def planned(permitted, settings=asked):
        some = replace(shelf, permits=lambda feature: feature in permitted)
        report = settings.plan(llama, {"toy": some}, FREE).report
        return [f["feature"] for f in report["features"]], report["warnings"]

    chosen, warnings = planned({second, third})
    assert chosen == [second, third]
    assert any(f"passed over, not being permitted: {first} of" in told for told in warnings)
    assert planned({third})[0] == [third]  # fewer than were asked for
    # Where none may, the best are told: who permits refuses them by name.
    assert planned(set()) == planned({first, second})
    assert planned(set(), one(first, 1.0, mode="raw"))[0] == [first]


def test_a_label_is_enough(llama, shelf):
    planned = SAE(concept="queen", sae="toy", min_output_score=0.0).plan(
        llama, {"toy": shelf}, FREE
    )
    assert [f["feature"] for f in planned.report["features"]] == [5]


@pytest.mark.usefixtures("wide")
def test_a_concept_whose_features_do_not_steer_is_refused_with_its_coverage(llama, shelf):
    word, found = word_of(llama, shelf)
    with pytest.raises(errors.ConceptNotCovered) as refused:
        SAE(concept=word, min_output_score=1.0).plan(llama, {"toy": shelf}, FREE)
    assert refused.value.candidates == len(found.kept) + len(found.dropped)
    assert refused.value.best == pytest.approx(found.best)
    asked = SAE(concept=word, min_output_score=1.0, on_low_score="warn")
    planned = asked.plan(llama, {"toy": shelf}, FREE)
    assert planned.report["features"][0]["feature"] == found.kept[0][0].feature
    assert any("output score" in said for said in planned.report["warnings"])


def test_a_concept_that_nothing_writes_is_refused_even_where_low_scores_are_allowed(llama, shelf):
    for on_low in ("reject", "warn", "allow"):
        with pytest.raises(errors.ConceptNotCovered):
            SAE(concept="zq", on_low_score=on_low).plan(llama, {"toy": shelf})


# --- refusals ------------------------------------------------------------------------------------


def test_a_low_score_is_refused_warned_of_or_allowed(llama, shelf):
    feature = min(range(48), key=lambda f: shelf.scores([f])[f].output_score)
    score = shelf.scores([feature])[feature].output_score
    asked = one(feature, 0.1, mode="raw", min_output_score=min(1.0, score + 0.01))
    with pytest.raises(errors.LowOutputScore) as refused:
        replace(asked, on_low_score="reject").plan(llama, {"toy": shelf})
    assert refused.value.score == score and refused.value.feature == feature
    warned = replace(asked, on_low_score="warn").plan(llama, {"toy": shelf}).report["warnings"]
    allowed = replace(asked, on_low_score="allow").plan(llama, {"toy": shelf}).report["warnings"]
    assert len(warned) == len(allowed) + 1


def test_the_default_threshold_is_the_papers_usable():
    assert SAE(concept="king").minimum == 0.01
    assert SAE(concept="king", min_output_score=0.0).minimum == 0.0


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        (one(48), errors.UnknownFeature),
        (SAE(features=(SteeredFeature(sae="other", feature=0),)), errors.UnknownDictionary),
        (SAE(concept="king", sae="other"), errors.UnknownDictionary),
        (SAE(), errors.NothingToSteer),
        (one(0, math.nan, mode="raw"), errors.BadStrength),
        (one(0, math.inf), errors.BadStrength),
        (one(0, 1e38, mode="raw"), errors.BadStrength),
        (one(0, None, mode="raw"), errors.BadStrength),
        (one(0, None, mode="clamp"), errors.BadStrength),
        (one(0, 0.0), errors.NothingToSteer),
        (one(0, 1.0, mode="multiply"), errors.NothingToSteer),
        (one(0, 0.0, mode="min_clamp"), errors.NothingToSteer),
        (one(0, 1000.0), errors.TooStrong),
        (one(0, 1000.0, mode="clamp"), errors.TooStrong),
        (one(0, a_max="live"), errors.ModeNotPossible),
        (one(0, a_max="prompt"), errors.PromptNeeded),
        (one(0, 0.1, mode="raw", skip_special=True), errors.PromptNeeded),
        (one(3, 1.0, mode="max"), errors.NoActivations),
        (one(3, 1.0, mode="clamp", clamp_in="max"), errors.NoActivations),
    ],
)
def test_what_cannot_be_done_is_refused(llama, shelves, asked, refusal):
    with pytest.raises(refusal) as refused:
        asked.plan(llama, shelves)
    assert refused.value.remedy


def test_opposite_features_that_cancel_are_refused(llama, shelves):
    features = tuple(SteeredFeature(sae="toy", feature=0, strength=s) for s in (1.0, -1.0))
    with pytest.raises(errors.NothingToSteer):
        SAE(features=features, mode="raw", on_low_score="allow").plan(llama, shelves)


def test_modes_that_an_sae_cannot_do_are_refused(llama, dictionary_for):
    top_k = Shelf.of(llama, dictionary_for(llama, SITE, activation=TopK(k=3)))
    normed = Shelf.of(llama, dictionary_for(llama, SITE, input_norm="constant_norm_rescale"))
    for mode in ("clamp", "min_clamp", "multiply", "ablate"):
        for found in (top_k, normed):
            with pytest.raises(errors.ModeNotPossible):
                one(0, 0.5, mode=mode).plan(llama, {"toy": found}, FREE)
    for mode in ("amp", "raw", "unit"):
        with pytest.raises(errors.ModeNotPossible):
            one(0, 0.5, mode=mode).plan(llama, {"toy": normed}, FREE)
        assert one(0, 0.5, mode=mode).plan(llama, {"toy": top_k}, FREE).patch


def test_amp_where_no_code_is_active_is_refused(llama, dictionary_for):
    asleep = Shelf.of(llama, dictionary_for(llama, SITE, encoder_bias=torch.full((48,), -1e4)))
    with pytest.raises(errors.NothingToSteer):
        one(0).plan(llama, {"toy": asleep})
    assert one(0, 0.5, mode="raw").plan(llama, {"toy": asleep}).patch


def test_a_prompt_of_marks_alone_has_nothing_to_steer(llama, shelves):
    request = Request(prompt=(1, 2), special=frozenset({1, 2}))
    asked = one(0, 0.1, mode="raw", positions="prompt", skip_special=True)
    with pytest.raises(errors.NothingToSteer):
        asked.plan(llama, shelves, request)


def test_a_model_that_draws_is_refused(tiny_sd, shelves):
    with pytest.raises(MethodNotApplicable):
        one(0).plan(tiny_sd, shelves)


def test_to_plan_gives_the_same_patch_each_time_and_changes_no_weight(llama, shelves):
    before = llama.weights_digest()
    patch = one(0, 2.0).plan(llama, shelves, FREE).patch
    assert patch == one(0, 2.0).plan(llama, shelves, FREE).patch
    assert llama.weights_digest() == before
