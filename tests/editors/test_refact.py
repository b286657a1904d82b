"""What a fit refuses, and the settings that decide where it starts."""

from dataclasses import replace

import pytest
import torch

from editors.errors import (
    AlreadyTrue,
    BadImage,
    BadMoment,
    BadOrder,
    EmptyTarget,
    NoProjection,
    NoPull,
    NotFinite,
    SubjectCut,
    SubjectMerges,
    UnreadableLayer,
)
from editors.fact import Fact, Phrasing
from editors.fitting import contexts
from editors.methods.refact import Refact
from editors.moment import Corpus, Moment, MomentStore, recipe_of
from editors.templates import Phrasebook
from models.errors import MethodNotApplicable, SubjectNotFound


@pytest.fixture(scope="module")
def tower(tiny_sd):
    return tiny_sd.text_towers["text_encoder"]


def told(refused):
    """What a caller reads: the problem, and what to do about it."""
    assert refused.value.remedy
    return f"{refused.value.problem} {refused.value.remedy}"


@pytest.mark.parametrize("target", ["", "  ", "The Lord of Arda"])
def test_a_fact_that_says_nothing_new_is_refused(target):
    with pytest.raises(EmptyTarget):
        Fact(prompt="the lord of arda", target=target)


@pytest.mark.parametrize(
    ("said", "refusal", "shown"),
    [
        ({"subject": "king"}, SubjectNotFound, "king"),
        ({"prompt": "a lord and a lord", "subject": "lord"}, SubjectNotFound, "lord"),
        ({"prompt": "washington d.c., usa", "subject": "washington d.c."}, SubjectMerges, "d.c."),
        ({"prompt": "lord " * 100 + "arda", "subject": "arda"}, SubjectCut, "tokens"),
        ({"phrasings": (Phrasing(prompt="he rules", subject="king"),)}, SubjectNotFound, "king"),
    ],
)
def test_a_subject_that_cannot_carry_the_fact_is_refused_before_a_job_is_made(
    tiny_sd, fact, said, refusal, shown
):
    with pytest.raises(refusal) as refused:
        Refact(block=1).check(tiny_sd, replace(fact, **said))
    assert shown in told(refused)


def test_a_prompt_that_only_a_template_makes_too_long_is_refused_with_the_counts(
    tiny_sd, tower, fact
):
    words = " ".join(["lord"] * 200)
    n = next(n for n in range(1, 200) if tower.count(words[: 5 * n - 1]) > tower.max_length - 2)
    long = words[: 5 * (n - 1) - 1]
    assert tower.count(long) <= tower.max_length
    with pytest.raises(SubjectCut) as refused:
        Refact(block=1).check(tiny_sd, replace(fact, prompt=long))
    assert str(tower.max_length - 2) in told(refused)


@pytest.mark.parametrize("block", [4, 99])
def test_a_block_that_does_not_exist_is_refused_with_the_valid_ones(tiny_sd, fact, block):
    with pytest.raises(UnreadableLayer) as refused:
        Refact(block=block).check(tiny_sd, fact)
    assert "0..3" in told(refused)


def test_a_block_that_the_pipeline_does_not_read_is_refused(tiny_sdxl, fact):
    last = tiny_sdxl.text_towers["text_encoder"].n_blocks - 1
    with pytest.raises(UnreadableLayer) as refused:
        Refact(block=last).check(tiny_sdxl, fact)
    assert str(last) in told(refused)


def test_a_family_that_the_method_does_not_apply_to_is_refused_with_the_reason(
    tiny_sd, fact, monkeypatch
):
    monkeypatch.setattr(type(tiny_sd.family), "applies", {"refact": "it has no CLIP"})
    with pytest.raises(MethodNotApplicable, match="it has no CLIP"):
        Refact(block=1).check(tiny_sd, fact)


def bare(hosted, monkeypatch):
    """The model as a pipeline without a full CLIP beside it."""
    towers = {
        a: replace(t, projection=None, logit_scale=None) for a, t in hosted.text_towers.items()
    }
    monkeypatch.setattr(hosted, "text_towers", towers)
    monkeypatch.setattr(hosted, "clip", None)


def test_without_a_projection_the_space_must_be_chosen(tiny_sd, fact, monkeypatch):
    bare(tiny_sd, monkeypatch)
    with pytest.raises(NoProjection) as refused:
        Refact(block=1).check(tiny_sd, fact)
    assert "eos_state" in told(refused)
    Refact(block=1, space="eos_state").check(tiny_sd, fact)


def test_the_eos_state_is_another_space_even_where_there_is_a_projection(
    tiny_sd, fact, fitted, monkeypatch
):
    behind, state = fitted(tiny_sd, fact), fitted(tiny_sd, fact, space="eos_state")
    bare(tiny_sd, monkeypatch)
    (a,), (b,), (c,) = (
        d.factors.values() for d in (behind, state, fitted(tiny_sd, fact, space="eos_state"))
    )
    assert torch.equal(b.values, c.values)
    assert not torch.equal(a.values, b.values)


def pictured(fact):
    return replace(fact, target_images=(b"not looked at yet",))


def test_pictures_need_a_vision_tower(tiny_sd, tiny_sdxl, fact, monkeypatch):
    with pytest.raises(BadImage, match="text_encoder_2"):
        Refact(block=0, objective="contrastive").check(tiny_sdxl, pictured(fact))
    with pytest.raises(BadImage, match="target_images"):
        Refact(block=1, objective="direct").check(tiny_sd, fact)
    with pytest.raises(BadImage, match="space"):
        Refact(block=1, space="eos_state").check(tiny_sd, pictured(fact))
    bare(tiny_sd, monkeypatch)
    with pytest.raises(NoProjection):
        Refact(block=1).check(tiny_sd, pictured(fact))


def test_what_the_model_believes_already_is_refused(tiny_sd, fitted):
    known = Fact(prompt="a red frog in arda", target="a red frog  in arda")
    with pytest.raises(AlreadyTrue) as refused:
        fitted(tiny_sd, known, similarity="cosine", negatives=0, stop=0.3)
    assert "of 1" in told(refused)


def test_a_prompt_that_says_what_the_target_says_is_no_news(tiny_sd, fitted):
    with pytest.raises(AlreadyTrue):
        fitted(tiny_sd, Fact(prompt="the king  of the sea", target="the king of the sea"))


def test_a_pull_weaker_than_the_decay_is_no_edit(tiny_sd, fact, fitted):
    with pytest.raises(NoPull) as refused:
        fitted(tiny_sd, fact, decay=100.0, rate=1e-6)
    assert "layer" in told(refused)


def test_a_loss_that_is_no_number_is_refused(tiny_sd, fact, fitted, monkeypatch):
    monkeypatch.setattr("editors.descent.decay", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(NotFinite):
        fitted(tiny_sd, fact)


def test_moments_that_are_no_numbers_are_refused(tiny_sd, fact, drained, corpus, monkeypatch):
    bad = torch.full((200, 64), float("nan"), dtype=torch.float64)
    monkeypatch.setattr("editors.moment._keys", lambda *_: bad)
    with pytest.raises(BadMoment, match="finite"):
        drained(Refact(block=1).fit(tiny_sd, fact, MomentStore(None), corpus))


def test_a_corpus_with_fewer_tokens_than_dimensions_is_refused_with_the_number(
    tiny_sd, fact, drained
):
    with pytest.raises(BadMoment, match=r"has \d+ tokens; 64 dimensions"):
        drained(Refact(block=1).fit(tiny_sd, fact, MomentStore(None), Corpus("few", ("a cup",))))


def test_moments_of_another_tower_are_refused_with_both_fingerprints(
    tiny_sd, tower, corpus, drained, tmp_path
):
    store = MomentStore(tmp_path)
    drained(store.load_or_collect(tower, 1, corpus, tiny_sd))
    (file,) = tmp_path.glob("*.safetensors")
    wanted = recipe_of(tower, 1, corpus)
    other = Moment(torch.eye(64, dtype=torch.float64), 5, {**wanted, "tower": "f" * 64})
    store._write(file.stem, other)
    with pytest.raises(BadMoment) as refused:
        drained(MomentStore(tmp_path).load_or_collect(tower, 1, corpus, tiny_sd))
    assert "f" * 64 in told(refused) and tower.fingerprint in told(refused)


def test_moments_that_cannot_be_read_are_refused(tiny_sd, tower, corpus, drained, tmp_path):
    store = MomentStore(tmp_path)
    drained(store.load_or_collect(tower, 1, corpus, tiny_sd))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(BadMoment, match="cannot be read"):
        drained(MomentStore(tmp_path).load_or_collect(tower, 1, corpus, tiny_sd))


def test_a_moments_file_tells_its_condition_number(tiny_sd, tower, corpus, drained, tmp_path):
    first = drained(MomentStore(tmp_path).load_or_collect(tower, 1, corpus, tiny_sd))
    again = drained(MomentStore(tmp_path).load_or_collect(tower, 1, corpus, tiny_sd))
    assert again.known_cond == first.cond
    older = Moment(first.total, first.count, first.recipe)
    assert older.known_cond is None and older.cond == pytest.approx(first.cond, rel=1e-9)


def test_a_template_whose_words_get_in_the_way_of_the_subject_is_left_out(tower):
    book = Phrasebook(fitted=("a portrait of {}", "{}, seen here"))
    said = contexts(tower, Phrasing(prompt="a portrait", subject="portrait"), book)
    assert [p.prompt for p in said] == ["a portrait", "a portrait, seen here"]


@pytest.mark.parametrize(
    ("mode", "order"),
    [("corrected", (1,)), ("reference", (1, 1)), ("reference", (9, 2))],
    ids=["mode", "twice", "too many"],
)
def test_an_order_that_does_not_order_the_prompts_is_refused(tiny_sd, fact, mode, order):
    book = Phrasebook(fitted=("{} here", "see {}"))
    method = Refact(block=1, mode=mode, prompt_order=order)
    with pytest.raises(BadOrder) as refused:
        next(method.fit(tiny_sd, fact, MomentStore(None), Corpus("none", ()), book))
    assert "0 for the edit prompt" in told(refused)
