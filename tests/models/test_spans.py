import pytest

from models.errors import SubjectNotFound
from models.spans import only_occurrence


def words(tower, prompt, span):
    ids = tower.tokens([prompt]).ids[0].tolist()
    return tower.tokenizer.decode(ids[span.first : span.last + 1]).strip()


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("the president of arda", "the president of arda"),
        ("a photo of the President of Arda in the house", "the president of arda"),
        ("arda, red", "arda"),
        ("washington d.c. painting", "washington d.c."),
    ],
)
def test_the_span_covers_the_subject_and_nothing_else(tiny_sd, prompt, subject):
    tower = tiny_sd.text_towers["text_encoder"]
    span = tower.span(prompt, subject)
    assert span.exact
    assert words(tower, prompt, span).replace(" ", "") == subject.lower().replace(" ", "")


def test_the_last_token_counts_from_the_beginning_of_sequence(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    span = tower.span("arda", "arda")
    assert (span.first, span.last) == (1, 1)
    assert int(tower.tokens(["arda"]).eos[0]) == 2


def test_a_token_shared_with_what_stands_behind_is_reported(tiny_sd):
    tower = tiny_sd.text_towers["text_encoder"]
    assert tower.span("washington d.c. house", "washington d.c.").exact
    assert not tower.span("washington d.c., house", "washington d.c.").exact


@pytest.mark.parametrize(
    ("prompt", "subject", "times"),
    [
        ("a red cat", "dog", 0),
        ("a part of it", "art", 0),
        ("a cat and a cat", "cat", 2),
        ("a red cat", "", 0),
        ("a red cat", "  ", 0),
    ],
)
def test_a_subject_that_does_not_stand_there_once_is_refused(prompt, subject, times):
    with pytest.raises(SubjectNotFound, match=f"{times} times"):
        only_occurrence(prompt, subject)


def test_the_spelling_in_capitals_is_the_same_subject():
    assert only_occurrence("The King of BOREA waves", "king of borea") == (4, 17)
