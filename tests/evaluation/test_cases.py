import json

import pytest

from evaluation.cases import read_cases
from evaluation.errors import UnreadableCases

POSITIVES = "Positive1,Positive_oracle1,Positive_old1,Positive_new1"
ROAD = f"""Type,Prompt,Oracle,Old,New,{POSITIVES},Negative1,Negative_new1
Roles, The captain of the ship ,Ada Rook,Tom Pike,Ada Rook,\
the captain of the ship waves,Ada Rook waves,Tom Pike waves,Ada Rook waves,Tom Pike, Ada Rook
Appearance,A gate,A green gate,A gate,A green gate,\
an old gate,an old green gate,an old gate,an old green gate,A fence,A green fence
"""
TIMED = """old,new,positive1,gt1,positive2,gt2,negative1,gn1
gate, green gate ,an old gate,an old green gate,,,a fence,a green fence
gate,blue gate,an old gate,an old blue gate,a gate in snow,a blue gate in snow,a fence,a blue fence
"""


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_road_rows_become_roles_and_appearances_without_stray_blanks(tmp_path):
    role, look = read_cases(written(tmp_path, "road.csv", ROAD))
    assert (role.kind, look.kind) == ("role", "appearance")
    assert (role.prompt, role.target, role.source) == (
        "The captain of the ship",
        "Ada Rook",
        "Tom Pike",
    )
    (general,) = role.of("generality")
    assert (general.right, general.wrong) == ("Ada Rook waves", "Tom Pike waves")
    (kept,) = role.of("specificity")
    assert (kept.prompt, kept.right, kept.wrong) == ("Tom Pike", "Tom Pike", "Ada Rook")


def test_timed_rows_with_one_name_stay_two_cases(tmp_path):
    first, second = read_cases(written(tmp_path, "timed.csv", TIMED))
    assert first.key != second.key
    assert first.target == "green gate"
    assert len(first.of("generality")) == 1  # empty cells are no probes
    assert len(second.of("generality")) == 2
    assert second.of("specificity")[0].wrong == "a blue fence"


def test_cake_fills_the_entity_in_and_tells_scenes_from_paraphrases(tmp_path):
    def entry(text):
        return {"test": text, "test_oracle": "Ada Rook", "test_eval": "a picture of Ada Rook "}

    told = [
        {
            "role_type": 3,
            "edit_prompt": "The captain of {}",
            "entity": "the ship",
            "target": "Ada Rook",
            "oracle": "Ada Rook",
            "generality_a": [entry("The captain of the ship swims")],
            "generality_b": [entry("The ship's captain")],
            "specificity": [entry("The cook of the ship")],
        }
    ]
    (case,) = read_cases(written(tmp_path, "cake.json", json.dumps(told)))
    assert case.prompt == "The captain of the ship"
    assert [p.tag for p in case.of("generality")] == ["scene", "paraphrase"]
    assert case.of("specificity")[0].oracle is None


def test_our_own_file_says_everything_a_case_has(tmp_path):
    probe = {"part": "efficacy", "prompt": "a mug", "right": "red", "wrong": "blue", "tag": "x"}
    fact = {
        "kind": "appearance",
        "prompt": "a mug",
        "target": "a red mug",
        "subject": "mug",
        "phrasings": [{"prompt": "the mug", "subject": "the mug"}],
        "neighbours": ["a cup"],
        "probes": [probe],
    }
    (case,) = read_cases(written(tmp_path, "facts.json", json.dumps({"facts": [fact]})))
    assert (case.subject, case.phrasings, case.neighbours) == (
        "mug",
        (("the mug", "the mug"),),
        ("a cup",),
    )
    assert case.probes[0].tag == "x"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "one,two\n1,2\n"),
        ("a.csv", ""),
        ("a.json", "{"),
        ("a.json", '{"facts": [{"prompt": "x"}]}'),
        ("a.json", '{"facts": []}'),
        (
            "a.json",
            '{"facts": [{"kind": "r", "prompt": "x", "target": "y", "probes": [{"part": "z"}]}]}',
        ),
    ],
)
def test_a_file_of_another_shape_is_refused_with_its_name(tmp_path, name, text):
    with pytest.raises(UnreadableCases, match=name):
        read_cases(written(tmp_path, name, text))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UnreadableCases):
        read_cases(tmp_path / "none.csv")
