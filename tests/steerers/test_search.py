import pytest
import torch

from steerers.lens import LensIndex
from steerers.score import Score
from steerers.search import candidates, forms, lens_places, search, tokens_of, words_of


def score(feature, output):
    told = {"peak": output, "rank": 0, "p_max_before": 0.5, "p_max_after": 0.5}
    return Score(feature=feature, output_score=output, a_max=1.0, tokens=(1,), **told)


def scored(by_feature):
    asked = []

    def scores(features):
        asked.append(list(features))
        return {f: score(f, by_feature.get(f, 0.0)) for f in features}

    return scores, asked


def index_of(rows):
    return LensIndex.of(torch.arange(len(rows)), torch.tensor(rows))


def test_words_stand_for_their_simple_inflections():
    assert {"city", "cities"} <= set(forms("city"))
    assert {"dance", "danced", "dancing"} <= set(forms("dance"))
    assert "cat" in forms("cats") and "party" in forms("parties")
    assert words_of("the Cats of a city") == ("cats", "city")
    assert words_of("of the") == ("of", "the")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_forms_that_are_one_token_stand_for_a_concept(decoders, kind):
    hosted = decoders(kind)
    tokens, by_piece = tokens_of(hosted, "the Cats")
    (cat,) = (i for i in hosted.family.tokenize(hosted, " cat", special=False)[-1:])
    assert not by_piece and cat in tokens
    assert {hosted.family.detokenize(hosted, [i]).strip().lower() for i in tokens} == {"cat"}


def test_a_word_that_the_tokenizer_spells_is_known_by_its_first_piece(decoders):
    gpt2 = decoders("gpt2")
    tokens, by_piece = tokens_of(gpt2, "presidency")
    assert by_piece
    pieces = [gpt2.family.detokenize(gpt2, [i]).strip() for i in tokens]
    assert all("presidency".startswith(p) and len(p) >= 3 for p in pieces) and pieces
    assert tokens_of(gpt2, "zq") == ((), True)


def test_candidates_come_by_lens_place_and_labels_first():
    index = index_of([[5, 7, 9], [7, 5, 1], [2, 3, 4], [1, 2, 7]])
    found = candidates([7, 9], index, "winter", {2: "Winters, snow", 0: "summer", 3: "x"})
    assert [(c.feature, c.place, c.label) for c in found] == [
        (2, None, "Winters, snow"),
        (1, 0, None),
        (0, 1, None),
        (3, 2, None),
    ]


def test_what_is_found_is_filtered_and_ranked_by_output_score(llama):
    tokens, _ = tokens_of(llama, "king")
    index = index_of([[tokens[0], 0], [0, tokens[0]], [tokens[0], 1], [2, 3]])
    scores, asked = scored({0: 0.02, 1: 0.6, 2: 0.3})
    found = search(llama, "king", index, scores, minimum=0.1)
    assert asked == [[0, 2, 1]], "asked once, for all candidates"
    assert [c.feature for c, _ in found.kept] == [1, 2]
    assert [c.feature for c, _ in found.dropped] == [0]
    assert found.coverage == pytest.approx(2 / 3) and found.best == 0.6
    told = found.as_dict()
    assert (told["candidates"], told["total"], told["by_piece"]) == (3, 3, False)
    assert told["dropped"][0]["output_score"] == 0.02


def test_a_label_goes_before_a_lens_token(llama):
    token = tokens_of(llama, "cat")[0][0]
    index = index_of([[token, 1], [2, 3]])
    scores, _ = scored({0: 0.9, 1: 0.2})
    found = search(llama, "cat", index, scores, labels={1: "cats"}, minimum=0.1)
    assert [c.feature for c, _ in found.kept] == [1, 0]


def test_where_words_are_few_only_the_first_of_the_lens_speak_for_a_feature(llama):
    assert lens_places(llama) == 3  # of twenty, in a vocabulary of a few hundred
    token = tokens_of(llama, "cat")[0][0]
    index = index_of([[1, 2, 3, token], [token, 1, 2, 3]])
    scores, _ = scored({0: 0.9, 1: 0.2})
    found = search(llama, "cat", index, scores)
    assert [c.feature for c, _ in found.kept] == [1, 0]


def test_only_so_many_are_scored_and_nobody_is_asked_for_none(llama):
    tokens, _ = tokens_of(llama, "king")
    index = index_of([[tokens[0]]] * 9)
    scores, asked = scored({})
    found = search(llama, "king", index, scores, at_most=4)
    assert (len(asked[0]), found.total) == (4, 9)
    none = search(llama, "dog", index, scores)
    assert len(asked) == 1 and (none.kept, none.dropped, none.coverage) == ((), (), 0.0)


def test_a_feature_without_a_score_is_dropped(llama):
    tokens, _ = tokens_of(llama, "king")
    broken = Score(
        feature=0, output_score=None, peak=None, rank=None, p_max_before=None, p_max_after=None,
        a_max=1.0, tokens=(), reason="not finite",
    )  # fmt: skip
    found = search(llama, "king", index_of([[tokens[0]]]), lambda _: {0: broken})
    assert found.kept == () and len(found.dropped) == 1 and found.best is None
