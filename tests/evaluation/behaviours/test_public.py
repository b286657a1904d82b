import json

import pytest

from evaluation.behaviours.errors import UnknownVariable, UnreadableRows
from evaluation.behaviours.public import (
    PUBLIC_TASKS,
    asking,
    public_pairs,
    public_swaps,
    read_rows,
)

IOI = {
    "prompt": "Then Ann and Bob met, and Ann called",
    "metadata": {"subject": "Ann", "indirect_object": "Bob", "random_c": "Tim"},
    "s1_io_flip_counterfactual": {"prompt": "Then Bob and Ann met, and Ann called"},
    "s2_io_flip_counterfactual": {"prompt": "Then Ann and Bob met, and Bob called"},
    "s1_ioi_flip_s2_ioi_flip_counterfactual": {"prompt": "Then Bob and Ann met, and Bob called"},
}
CHOICE = {
    "prompt": "A sky is blue. Which?\nA. red\nB. blue\nAnswer:",
    "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
    "answerKey": 1,
    "symbol_counterfactual": {
        "prompt": "A sky is blue. Which?\nX. red\nY. blue\nAnswer:",
        "choices": {"label": ["X", "Y"], "text": ["red", "blue"]},
        "answerKey": "Y",
    },
    "answerPosition_counterfactual": {
        "prompt": "A sky is blue. Which?\nA. blue\nB. red\nAnswer:",
        "choices": {"label": ["A", "B"], "text": ["blue", "red"]},
        "answerKey": 0,
    },
}
SUM = {
    "prompt": "Q: 14 plus 78? A: ",
    "operator": "+",
    "label": "92",
    "random_counterfactual": {"prompt": "Q: 10 plus 11? A: ", "label": "21"},
    "ones_carry_counterfactual": {"prompt": "Q: 11 plus 71? A: ", "label": "82"},
}
CITY = {
    "prompt": "The city of {Oslo} is in",
    "entity": "Oslo",
    "attribute": "Country",
    "Country": "Norway",
    "Continent": "Europe",
    "Language": "Norwegian",
    "attribute_counterfactual": {
        "prompt": "People in Lima speak",
        "entity": "Lima",
        "attribute": "Language",
        "Country": "Peru",
        "Continent": "South America",
        "Language": "Spanish",
    },
    "wikipedia_counterfactual": {"prompt": "Lima is large", "entity": "Lima", "attribute": ""},
}


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_rows_are_read_from_each_kind_of_file(tmp_path, ending):
    file = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        arrow = pytest.importorskip("pyarrow")
        arrow.parquet = pytest.importorskip("pyarrow.parquet")
        arrow.parquet.write_table(arrow.Table.from_pylist([IOI, IOI]), file)
    else:
        text = json.dumps([IOI, IOI]) if ending == "json" else f"{json.dumps(IOI)}\n" * 2
        file.write_text(text, encoding="utf-8")
    assert read_rows(file) == [IOI, IOI]


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"a": 1}'])
def test_what_is_no_list_of_rows_is_refused(tmp_path, text):
    file = tmp_path / "rows.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UnreadableRows):
        read_rows(file)
    with pytest.raises(UnreadableRows):
        read_rows(tmp_path / "missing.jsonl")


def test_names_stand_behind_a_space_and_the_third_must_be_alike():
    (pair,) = public_pairs("ioi", [IOI]).pairs
    assert (pair.correct, pair.incorrect, pair.alike) == (" Bob", " Ann", (" Tim",))
    assert pair.corrupted == IOI["s2_io_flip_counterfactual"]["prompt"]
    swaps = public_swaps("ioi", [IOI]).swaps
    assert [s.signs["output_token"][0] for s in swaps] == [1, -1, -1]
    assert [s.signs["output_position"][1] for s in swaps] == [-1, -1, 1]


def test_letters_are_bare_for_circuits_and_behind_a_space_for_variables():
    (pair,) = public_pairs("copycolors_mcqa", [CHOICE]).pairs
    assert (pair.correct, pair.incorrect) == ("B", "Y")
    (swap,) = public_swaps("copycolors_mcqa", [CHOICE]).swaps
    assert (swap.base_answer, swap.counterfactual_answer) == (" B", " A")
    assert swap.expected == {"answer_pointer": " A", "answer": " A"}
    here, there = swap.positions["correct_symbol"]
    # Not the article in front of "sky".
    assert (swap.base[here - 1 : here + 2], swap.counterfactual[there:][:2]) == ("\nB.", "A.")


def test_sums_keep_their_leading_zero_for_variables_only():
    (pair,) = public_pairs("arithmetic_addition", [SUM]).pairs
    assert (pair.correct, pair.incorrect) == ("92", "21")
    told = public_swaps("arithmetic_addition", [SUM]).swaps
    assert {s.of_set: s.expected["ones_carry"] for s in told} == {
        "random": "082",
        "ones_carry": "082",
    }
    assert told[0].base_answer == "092" and told[0].base[told[0].positions["op2_last"][0]] == "8"
    dropped = public_pairs("arithmetic_subtraction", [SUM]).dropped
    assert dropped[0].reason == "its operator is +"


def test_a_city_brings_its_own_attributes():
    told = {s.of_set: s for s in public_swaps("ravel", [CITY]).swaps}
    assert told["attribute"].expected == {
        "Country": " Peru",
        "Continent": " Norway",
        "Language": " Norway",
    }
    assert told["attribute"].base == CITY["prompt"]
    assert told["wikipedia"].expected["Country"] == " Peru"
    assert told["wikipedia"].counterfactual_answer == ""


def test_rows_without_a_counterfactual_fall_out_and_rows_without_a_field_are_refused():
    found = public_pairs("ioi", [IOI, {"prompt": "x"}])
    assert len(found.pairs) == 1 and found.dropped[0].row == 1
    with pytest.raises(UnreadableRows, match="row 0 has no "):
        public_pairs("ioi", [{k: v for k, v in IOI.items() if k != "metadata"}])
    with pytest.raises(UnreadableRows):
        public_pairs("ravel", [CITY])
    with pytest.raises(UnreadableRows):
        public_swaps("chess", [])
    assert "arc_easy" in PUBLIC_TASKS


def test_all_rows_ask_for_the_variable_and_half_as_many_for_each_other():
    rows = [
        {**CITY, "attribute": name}
        for name in ("Language", "Country", "Continent", "Country", "Language", "Country", 3, None)
    ]
    found = [row["attribute"] for row in asking(rows, "Country")]
    assert found == ["Language", "Country", "Continent", "Country", "Country"]
    with pytest.raises(UnknownVariable, match="Mayor"):
        asking(rows, "Mayor")


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("ioi", {"prompt": 3}),
        ("ioi", {**IOI, "s2_io_flip_counterfactual": "text"}),
        ("arc_easy", {**CHOICE, "choices": 3}),
        ("copycolors_mcqa", {**CHOICE, "answerKey": 7}),
        ("arithmetic_addition", {**SUM, "prompt": None}),
    ],
)
def test_odd_rows_are_refused_with_their_number(task, row):
    with pytest.raises(UnreadableRows, match="row 0"):
        public_pairs(task, [row])


def test_a_value_that_a_city_lacks_is_no_answer():
    unknown = {**CITY["attribute_counterfactual"]}
    del unknown["Country"]
    (swap, *_) = public_swaps("ravel", [{**CITY, "attribute_counterfactual": unknown}]).swaps
    assert swap.expected["Country"] == ""
