import json

import pytest

from evaluation.errors import UnreadableCases
from evaluation.lens_cases import read_lens_cases

ENTRY = {
    "prompt": "a red mug",
    "kind": "coloured object",
    "group": "simple",
    "questions": [
        {"question": "object", "right": "a mug", "options": ["a mug", "a frog"]},
        {"question": "colour", "right": "red", "place": "left"},
    ],
}


def written(folder, *entries):
    path = folder / "lens.json"
    path.write_text(json.dumps({"format": 1, "cases": entries}))
    return path


def test_our_own_file_says_everything(tmp_path):
    rare = {**ENTRY, "frequency": "rare"}
    first, second = read_lens_cases(written(tmp_path, ENTRY, rare))
    assert (first.key, first.kind, first.frequency) == ("0: a red mug", "coloured object", None)
    assert first.questions[0].options == ("a mug", "a frog")
    assert [q.place for q in first.questions] == ["whole", "left"]
    assert second.frequency == "rare" and second.key != first.key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"group": "hard"}, "simple, compound"),
        ({"frequency": "seldom"}, "common, rare"),
        ({"questions": []}, "asks nothing"),
        ({"questions": [{"question": "object", "right": "a"}, {}]}, "question"),
        (
            {"questions": [{"question": "object", "right": "a", "options": ["b", "c"]}]},
            "its own options",
        ),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_with_its_fault(tmp_path, change, said):
    with pytest.raises(UnreadableCases, match=said):
        read_lens_cases(written(tmp_path, {**ENTRY, **change}))


def test_lines_of_text_are_judged_against_each_other(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("A porcupine.\n\n  A tambourine.\n")
    first, second = read_lens_cases(path)
    assert [first.prompt, second.prompt] == ["A porcupine.", "A tambourine."]
    [question] = first.questions
    assert (question.question, question.right) == ("prompt", "A porcupine.")
    assert question.options == ("A porcupine.", "A tambourine.")
    assert (first.group, first.kind) == ("simple", "mine")


def test_the_papers_lists_are_known_by_name(tmp_path):
    for name, group, frequency in (
        ("two_colors", "compound", None),
        ("Prompts_familiar_animals", "simple", "common"),
        ("unfamiliar_animals", "simple", "rare"),
    ):
        path = tmp_path / f"{name}.csv"
        path.write_text("prompt,natural\nA tapir.,1\nAn okapi.,0\n")
        [case, _] = read_lens_cases(path)
        assert (case.prompt, case.group, case.frequency) == ("A tapir.", group, frequency)


def test_a_table_can_say_more(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Prompt,group,frequency,kind\nA tapir in a bag.,compound,rare,animals\n")
    [case] = read_lens_cases(path)
    assert (case.group, case.frequency, case.kind) == ("compound", "rare", "animals")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.json", "{"), ("a.json", "[]"), ("a.csv", "words\nA tapir.\n"), ("a.txt", "\n")],
)
def test_a_file_of_no_known_shape_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UnreadableCases):
        read_lens_cases(path)
