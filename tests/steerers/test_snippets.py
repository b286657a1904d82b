import pytest
import torch

from steerers.activations import collect
from steerers.snippets import AFTER, BEFORE, spelled, windows

TEXTS = [
    "the king of arda",
    "say that the red cat is a house",
    "borea",
    "the president of cedria said that he is a green dog and she is a blue tree and a photo of it",
    "the cat",
]


def drained(work):
    while True:
        try:
            next(work)
        except StopIteration as over:
            return over.value


def plain(hosted, dictionary, text):
    """(ids, codes) of one text read alone, the tokenizer's marks left out."""
    ids = hosted.family.tokenize(hosted, text)
    with hosted.captured(dictionary.site) as seen:
        hosted.family.logits(hosted, torch.tensor([ids]))
    codes = dictionary.encode(seen[dictionary.site][0][0])
    marks = hosted.family.special_ids(hosted)
    kept = [p for p, i in enumerate(ids) if i not in marks]
    return [ids[p] for p in kept], codes[kept]


def test_windows_show_what_stands_around_the_strongest_tokens(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    found = drained(collect(llama, dictionary, TEXTS))
    around = drained(windows(llama, dictionary, TEXTS, found, keep=3))
    alone = [plain(llama, dictionary, text) for text in TEXTS]
    for feature in range(dictionary.features):
        # Texts that begin alike are equally strong there: in which order they come is free.
        wanted = [window(ids, codes[:, feature]) for ids, codes in alone]
        maxima = sorted((w["maxValue"] for w in wanted if w["maxValue"] > 0), reverse=True)[:3]
        told = around.of(llama, feature)
        assert [one["maxValue"] for one in told] == pytest.approx(maxima, abs=1e-4)
        for one in told:
            (same, *_) = [w for w in wanted if w["ids"] == one["ids"]]
            assert one["maxValueTokenIndex"] == same["maxValueTokenIndex"]
            assert one["values"] == pytest.approx(same["values"], abs=1e-4)


def window(ids, codes):
    place = int(codes.argmax())
    start, end = max(0, place - BEFORE), place + AFTER + 1
    return {
        "ids": ids[start:end],
        "values": codes[start:end].tolist(),
        "maxValue": float(codes[place]),
        "maxValueTokenIndex": place - start,
    }


def test_a_text_that_is_cut_shows_nothing_beyond_the_cut(llama, dictionary_for):
    dictionary = dictionary_for(llama)
    found = drained(collect(llama, dictionary, TEXTS, tokens=8))
    around = drained(windows(llama, dictionary, TEXTS, found, keep=2, tokens=8))
    assert int((around.ids >= 0).sum(-1).max()) <= 8


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "qwen2"])
def test_tokens_are_spelt_as_they_stand_in_a_text(decoders, kind):
    decoder = decoders(kind)
    family = decoder.family
    text = "the king of arda said"
    ids = family.tokenize(decoder, text, special=False)
    assert "".join(spelled(decoder, i) for i in ids).strip() == text
    for mark in family.special_ids(decoder):
        assert spelled(decoder, mark)
