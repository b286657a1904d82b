import pytest
import torch

from engines.cache import Embedding, Embeddings, Reading
from engines.errors import EngineFailed
from models.errors import PatchNotApplied
from models.patch import Exit, LowRank, Patch, Shift

SITE = "text_encoder.text_model.encoder.layers.1.mlp.fc2"


def edit(seed):
    drawn = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(32, 1, generator=drawn),
        torch.randn(1, 64, generator=drawn),
    )
    return Patch((LowRank(site=SITE, left=left, right=right),))


@pytest.fixture(params=[False, True], ids=["alone", "together"])
def embeddings(tiny_sd, request):
    return Embeddings(tiny_sd, tiny_sd.family, 2**20, together=request.param)


def reading(text="a red cat", patch=None, *, negative=False):
    return Reading(text=text, patch=patch or Patch(), negative=negative)


def test_what_was_read_is_known_by_content(embeddings):
    [first] = embeddings.read([reading(patch=edit(1))])
    [again] = embeddings.read([reading(patch=edit(1))])
    assert not first.cached and again.cached
    assert again.conditioning is first.conditioning
    assert again.tokens_changed == first.tokens_changed == 77


def test_texts_of_the_same_tokens_are_the_same_reading(embeddings):
    embeddings.read([reading("a red cat")])
    [found] = embeddings.read([reading("  A  Red   cat ")])
    assert found.cached


@pytest.mark.parametrize(
    "other",
    [
        reading("a red dog", edit(1)),
        reading(patch=edit(2)),
        reading(),
        reading(patch=edit(1) | Patch((Exit(tower="text", after=2),))),
        reading(patch=edit(1), negative=True),
    ],
)
def test_another_text_or_patch_is_another_reading(embeddings, other):
    embeddings.read([reading(patch=edit(1))])
    [found] = embeddings.read([other])
    assert not found.cached


def test_several_are_each_what_they_are_alone(embeddings, tiny_sd):
    wanted = [
        reading("a red cat", edit(1)),
        reading("a red cat"),
        reading(None, edit(1), negative=True),
        reading("the president of arda", edit(2) | edit(1)),
        reading("a tree", negative=True),
    ]
    for found, one in zip(embeddings.read(wanted), wanted, strict=True):
        alone = tiny_sd.family.encode(tiny_sd, [one.text or ""], [one.patch])
        torch.testing.assert_close(found.conditioning.sequence, alone.sequence)
        assert found.conditioning.sequence.shape[0] == 1
        assert found.tokens_changed == 77 * len(one.patch.sites)


def test_one_that_fails_fails_alone(embeddings):
    # Position 99 lies behind the 77 tokens: the change reaches nothing, which is an error.
    missed = Patch((Shift(site="text.block.1", vector=torch.ones(32), positions=(99,)),))
    found = embeddings.read([reading(), reading(patch=missed), reading(patch=edit(1))])
    assert isinstance(found[1], PatchNotApplied)
    assert isinstance(found[0], Embedding) and isinstance(found[2], Embedding)
    assert found[2].tokens_changed == 77


def test_a_refusal_is_not_kept(embeddings):
    missed = Patch((Shift(site="text.block.1", vector=torch.ones(32), positions=(99,)),))
    for _ in range(2):
        assert isinstance(embeddings.read([reading(patch=missed)])[0], PatchNotApplied)
    assert len(embeddings.kept) == 0


def test_bytes_are_counted_as_they_are_held(embeddings):
    embeddings.read([reading("a cat"), reading("a dog"), reading("a tree")])
    held = 77 * 32 * 4
    assert embeddings.kept.used == 3 * held
    for kept, _ in embeddings.kept._entries.values():
        assert kept.conditioning.sequence.untyped_storage().nbytes() == held


def test_the_models_own_negative_is_not_the_empty_text_where_it_is_not(tiny_sdxl):
    embeddings = Embeddings(tiny_sdxl, tiny_sdxl.family, 2**20)
    own, empty = embeddings.read([reading(None, negative=True), reading("", negative=True)])
    assert float(own.conditioning.sequence.abs().max()) == 0.0
    assert float(empty.conditioning.sequence.abs().max()) > 0.0


def test_a_text_whose_key_cannot_be_made_fails_alone(embeddings, monkeypatch):
    found = type(embeddings.family).reading_key

    def broken(family, hosted, text):
        if text == "bad":
            raise KeyError(text)
        return found(family, hosted, text)

    monkeypatch.setattr(type(embeddings.family), "reading_key", broken)
    good, bad, again = embeddings.read([reading(), reading("bad"), reading()])
    assert isinstance(bad, EngineFailed)
    assert isinstance(good, Embedding) and isinstance(again, Embedding)
    assert len(embeddings.kept) == 1
