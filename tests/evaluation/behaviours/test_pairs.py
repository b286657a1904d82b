from evaluation.behaviours.pairs import Pair, first_token, prepare
from evaluation.behaviours.swaps import SwapText, prepare_swaps

SUM = Pair(clean="23+45=", corrupted="11+12=", correct="68", incorrect="23")


def test_a_pair_begins_with_the_first_token_and_ends_in_two_answers(miniature_lm):
    told = Pair(
        clean="When Anna and Ben", corrupted="When Ben and Anna", correct=" A", incorrect=" B"
    )
    (ids,) = prepare([told], miniature_lm).kept
    words = miniature_lm.parts["tokenizer"]
    assert ids.clean[:1] == first_token(words) == (words.tokenizer.bos_token_id,)
    assert words.text(ids.clean) == told.clean and words.text([ids.correct]) == " A"
    assert len(ids.clean) == len(ids.corrupted) and ids.clean != ids.corrupted


def test_rows_fall_out_one_by_one_with_their_reasons(miniature_lm):
    rows = [
        SUM,
        Pair(clean="a b", corrupted="a b c", correct=" A", incorrect=" B"),
        Pair(clean="", corrupted="", correct=" A", incorrect=" B"),
        Pair(clean="a", corrupted="b", correct=" A", incorrect=" A"),
        Pair(clean="a", corrupted="b", correct=" A", incorrect=""),
        Pair(clean="a " * 300, corrupted="a " * 300, correct=" A", incorrect=" B"),
        Pair(clean="a", corrupted="b", correct=" A", incorrect=" B", alike=("23",)),
        Pair(clean="a", corrupted="b", correct=" A", incorrect=" B", alike=(" C",)),
    ]
    found = prepare(rows, miniature_lm)
    assert [d.row for d in found.dropped] == [0, 1, 2, 3, 4, 5, 6] and len(found.kept) == 1
    reasons = [d.reason for d in found.dropped]
    for told, reason in zip(
        ("not one each", "prompts have", "empty", "same token", "answer is empty", "fit", "length"),
        reasons,
        strict=True,
    ):
        assert told in reason


def test_sums_of_digits_are_known_by_their_first(miniature_lm):
    (ids,) = prepare([SUM], miniature_lm, "first").kept
    words = miniature_lm.parts["tokenizer"]
    assert (words.text([ids.correct]), words.text([ids.incorrect])) == ("6", "2")


def test_positions_are_found_in_each_prompt_by_itself(miniature_lm):
    told = SwapText(
        base="The president of Arda is",
        counterfactual="Today the president of Korda is",
        base_answer=" Tolin",
        counterfactual_answer="",
        expected={"president": " Tolin"},
        positions={"entity": (20, 27), "last": (None, None)},
    )
    (ids,) = prepare_swaps([told], miniature_lm).kept
    words = miniature_lm.parts["tokenizer"]
    here, there = ids.positions["entity"]
    assert words.text(ids.base[: here + 1]).endswith("Arda")
    assert words.text(ids.counterfactual[: there + 1]).endswith("Korda")
    assert ids.positions["last"] == (len(ids.base) - 1, len(ids.counterfactual) - 1)
    assert ids.counterfactual_answer == () and words.text(ids.expected["president"]) == " Tolin"


def test_an_interchange_without_its_position_or_answer_falls_out(miniature_lm):
    told = {
        "base": "a b",
        "counterfactual": "a c",
        "base_answer": "x",
        "counterfactual_answer": "y",
    }
    rows = [
        SwapText(**told, expected={"v": "y"}, positions={"far": (90, 0)}),
        SwapText(**told, expected={"v": ""}),
        SwapText(**{**told, "base": ""}, expected={"v": "y"}),
    ]
    found = prepare_swaps(rows, miniature_lm)
    assert [d.reason for d in found.dropped] == [
        "no token stands at far",
        "an answer is empty",
        "a prompt is empty",
    ]
