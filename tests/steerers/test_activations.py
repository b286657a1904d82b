import pytest
import torch

from steerers.activations import collect, record
from steerers.errors import TooFewTexts
from steerers.streams import read

TEXTS = [
    "the king of arda",
    "say that the red cat is a house",
    "borea",
    "the president of cedria said that he is a green dog and she is a blue tree",
    "a photo of a house",
    "the cat",
]


def drained(work):
    said = []
    while True:
        try:
            said.append(next(work))
        except StopIteration as over:
            return over.value, said


def plain_codes(hosted, dictionary, text):
    """One text alone; [BOS] and other marks are left out."""
    ids = hosted.family.tokenize(hosted, text)
    with hosted.captured(dictionary.site) as seen:
        hosted.family.logits(hosted, torch.tensor([ids]))
    codes = dictionary.encode(seen[dictionary.site][0][0])
    marks = hosted.family.special_ids(hosted)
    return [(p, i, codes[p]) for p, i in enumerate(ids) if i not in marks]


@pytest.fixture
def toy(llama, dictionary_for):
    return llama, dictionary_for(llama)


def test_the_best_texts_of_each_feature_equal_a_plain_search(toy, monkeypatch):
    hosted, dictionary = toy
    monkeypatch.setattr("steerers.activations._CODE_BYTES", 0)
    found, said = drained(collect(hosted, dictionary, TEXTS, keep=4, tokens=80))
    assert len(said) >= 2 and said[-1].done == said[-1].total == len(TEXTS)
    all_codes = [plain_codes(hosted, dictionary, t) for t in TEXTS]
    assert found.tokens == sum(map(len, all_codes))
    for feature in range(0, 48, 7):
        best = [
            (*max(((float(c[feature]), -p, i) for p, i, c in codes)), t)
            for t, codes in enumerate(all_codes)
        ]
        best = [b for b in sorted(best, reverse=True) if b[0] > 0][:4]
        values, texts = found.values[feature].tolist(), found.texts[feature].tolist()
        assert values[: len(best)] == pytest.approx([b[0] for b in best], abs=1e-4)
        assert texts[: len(best)] == [b[3] for b in best]
        assert found.most_active(feature) == [b[2] for b in best]
        assert found.positions[feature].tolist()[: len(best)] == [-b[1] for b in best]
        active = sum(float(c[feature]) > 0 for codes in all_codes for _, _, c in codes)
        assert float(found.density[feature]) == pytest.approx(active / found.tokens)
        assert found.max_activation(feature) == pytest.approx(best[0][0] if best else 0, abs=1e-4)


def test_a_record_is_in_neuronpedias_shape(toy):
    hosted, dictionary = toy
    found, _ = drained(collect(hosted, dictionary, TEXTS))
    feature = int(found.values[:, 1].argmax())
    told = record(hosted, dictionary, found, feature, TEXTS, at_most=2)["activations"]
    assert len(told) == 2
    for place, sentence in enumerate(told):
        assert len(sentence["tokens"]) == len(sentence["values"]) == len(sentence["ids"])
        top = sentence["maxValueTokenIndex"]
        assert sentence["maxValue"] == max(sentence["values"]) == sentence["values"][top]
        assert sentence["maxValue"] == pytest.approx(float(found.values[feature, place]), abs=1e-4)
        assert sentence["ids"][top] == found.most_active(feature)[place]


def test_texts_are_cut_and_rows_of_like_length_share_a_forward(toy):
    hosted, dictionary = toy
    some = list(read(hosted, TEXTS, [dictionary.site], tokens=6, at_most=12))
    assert sorted(i for part in some for i in part.index) == list(range(len(TEXTS)))
    assert all(part.ids.numel() <= 12 or len(part.index) == 1 for part in some)
    assert all(part.ids.shape[1] <= 6 for part in some)


def test_texts_without_a_token_that_counts_are_refused(toy):
    hosted, dictionary = toy
    for texts in ([], [""]):
        with pytest.raises(TooFewTexts):
            drained(collect(hosted, dictionary, texts))
