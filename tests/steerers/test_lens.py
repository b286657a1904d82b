import pytest
import torch

from models.errors import MethodNotApplicable
from steerers.lens import LensIndex, LensTokens, bottom, lens, lens_logits, lens_of_all, top


def plain_logits(hosted, rows):
    """The library's own norm and head, feature by feature."""
    decoder = hosted.parts["decoder"]
    with torch.no_grad():
        return torch.stack([decoder.head(decoder.norm(row[None]))[0] for row in rows])


def test_lens_tokens_are_the_largest_logits_of_norm_and_head(decoder, dictionary_for):
    dictionary = dictionary_for(decoder)
    features = [5, 0, 47]
    found = lens(decoder, dictionary, features, k=20)
    wanted = plain_logits(decoder, dictionary.decoder[features])
    torch.testing.assert_close(found.values, wanted.topk(20).values)
    torch.testing.assert_close(wanted.gather(1, found.ids), found.values)
    torch.testing.assert_close(found.low_values, (-wanted).topk(20).values.neg())
    torch.testing.assert_close(wanted.gather(1, found.low_ids), found.low_values)


def test_the_lens_has_no_soft_cap_and_no_decoder_bias(decoders, dictionary_for):
    gemma = decoders("gemma2")
    dictionary = dictionary_for(gemma)
    logits = lens_logits(gemma, dictionary.decoder)
    cap = gemma.modules["lm"].config.final_logit_softcapping
    assert float(logits.abs().max()) > cap, "the toy would not show a cap"
    torch.testing.assert_close(logits, plain_logits(gemma, dictionary.decoder))
    capped = gemma.family.soft_cap(gemma, logits)
    assert float(capped.abs().max()) <= cap


@pytest.mark.parametrize("vocabulary", [5, 20, 1000, 6400, 6437])
def test_the_largest_of_blocks_are_the_largest_of_all(vocabulary):
    values = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(1))
    k = min(20, vocabulary)
    for ours, theirs in ((top, values.topk(k)), (bottom, values.topk(k, largest=False))):
        found, ids = ours(values, 20)
        assert torch.equal(found, theirs.values)
        assert torch.equal(values.gather(1, ids), found)


def test_ties_give_k_different_tokens():
    values = torch.zeros(2, 6400)
    for found, ids in (top(values, 20), bottom(values, 20)):
        assert all(len(set(row)) == 20 for row in ids.tolist())
        assert not found.any()


def test_tiles_of_a_dictionary_equal_the_whole(llama, dictionary_for, monkeypatch):
    dictionary = dictionary_for(llama)
    whole = lens(llama, dictionary, range(dictionary.features), k=5)
    monkeypatch.setattr("steerers.lens.tile_rows", lambda _: 7)
    work, said = lens_of_all(llama, dictionary, k=5), []
    while True:
        try:
            said.append(next(work))
        except StopIteration as over:
            parts = over.value
            break
    assert [p.done for p in said] == [7, 14, 21, 28, 35, 42, 48]
    assert torch.equal(parts.features, torch.arange(48))
    assert torch.equal(parts.ids, whole.ids) and torch.equal(parts.low_ids, whole.low_ids)


def test_the_index_finds_every_feature_of_a_token(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    found = lens(llama, dictionary, range(dictionary.features), k=8)
    index = LensIndex.of(found.features, found.ids)
    for token in (int(found.ids[3, 0]), int(found.ids[9, 7]), 10**6):
        wanted = [(f, row.index(token)) for f, row in enumerate(found.ids.tolist()) if token in row]
        assert index.find(token) == sorted(wanted, key=lambda pair: (pair[1], pair[0]))


def test_a_model_that_draws_has_no_lens(tiny_sd, dictionary_for, llama):
    with pytest.raises(MethodNotApplicable):
        lens(tiny_sd, dictionary_for(llama), [0])


def test_parts_are_joined_in_order(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    parts = [lens(llama, dictionary, [f], k=3) for f in (4, 2)]
    both = LensTokens.joined(parts)
    assert both.features.tolist() == [4, 2]
    assert torch.equal(both.ids, lens(llama, dictionary, [4, 2], k=3).ids)
