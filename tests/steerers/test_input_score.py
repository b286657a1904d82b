import pytest

from steerers.errors import BadRecord
from steerers.input_score import (
    INPUT_PAPER,
    INPUT_REFERENCE,
    InputSettings,
    from_record,
    input_score,
    max_activation,
    most_active_texts,
    token_id,
)


def sentence(tokens, values, **more):
    return {"tokens": tokens, "values": values, **more}


def test_the_share_of_sentences_whose_most_active_token_is_a_lens_token():
    found = input_score(7, [1, 1, 2, 3, 1, None, 2, 9, 9, 9], {1, 2}, INPUT_REFERENCE)
    assert (found.feature, found.input_score, found.sentences) == (7, 0.5, 10)


def test_the_paper_counts_every_token_once():
    tokens = [1] * 10 + [2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    assert input_score(0, tokens, {1, 2, 3}, INPUT_PAPER).input_score == pytest.approx(3 / 9)
    assert input_score(0, tokens, {1, 2, 3}, INPUT_REFERENCE).input_score == pytest.approx(12 / 20)


def test_too_few_sentences_have_no_score_and_only_the_first_hundred_count():
    few = input_score(0, [1] * 9, {1}, INPUT_REFERENCE)
    assert few.input_score is None and few.sentences == 9 and few.reason
    assert input_score(0, [1] * 9, {1}, InputSettings(min_sentences=9)).input_score == 1
    many = input_score(0, [1] * 100 + [2] * 100, {1}, INPUT_REFERENCE)
    assert (many.input_score, many.sentences) == (1.0, 100)


def test_records_of_strings_follow_the_references_rule(decoders):
    gpt2 = decoders("gpt2")  # no BOS: the second id would be wrong
    king, red = gpt2.family.tokenize(gpt2, " king")[0], gpt2.family.tokenize(gpt2, " red")[0]
    record = {
        "activations": [
            sentence(["_the", "_king"], [0.0, 2.0]),
            sentence(["_king", "_red"], [1.0, 1.0]),  # the first of equals
            sentence(["_red", "x"], [3.0, 1.0]),
        ]
    }
    settings = InputSettings(min_sentences=3)
    assert from_record(gpt2, 0, record, {king}, settings).input_score == pytest.approx(2 / 3)
    assert from_record(gpt2, 0, record, {red}, settings).input_score == pytest.approx(1 / 3)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_only_the_first_piece_of_a_token_counts_and_an_empty_one_misses(decoders, kind):
    hosted = decoders(kind)
    ids = hosted.family.tokenize(hosted, "my var", special=False)
    assert token_id(hosted, "my_var") == ids[0]
    assert token_id(hosted, "") is None


def test_the_largest_activation_is_the_first_sentences():
    record = {"activations": [sentence(["a"], [2.0], maxValue=3.0), sentence(["b"], [9.0])]}
    assert max_activation(record) == 3.0
    assert max_activation({"activations": [sentence(["a", "b"], [2.0, 5.0])]}) == 5.0
    for dead in ([sentence(["a"], [0.0])], []):
        assert max_activation({"activations": dead}) == 50.0


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"activations": {}},
        {"activations": ["text"]},
        {"activations": [sentence(["a"], [])]},
        {"activations": [sentence([], [])]},
    ],
)
def test_other_shapes_are_refused(record):
    with pytest.raises(BadRecord):
        most_active_texts(record)
