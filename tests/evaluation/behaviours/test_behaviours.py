import random

import pytest

from evaluation.behaviours import attributes
from evaluation.behaviours.arithmetic import Wording as Sums
from evaluation.behaviours.arithmetic import arithmetic, flip_carry
from evaluation.behaviours.causal import CausalModel
from evaluation.behaviours.errors import OddTable, UnknownSet, UnknownVariable
from evaluation.behaviours.indirect_object import SETS_SIGNS, indirect_object
from evaluation.behaviours.learned import SHORT, held_out_pairs, sentences
from evaluation.behaviours.pairs import prepare
from evaluation.behaviours.swaps import prepare_swaps
from service.vocabularies import vocabularies

EVERY = [
    pytest.param(behaviour, id=f"{vocabulary.name} {name}")
    for vocabulary in vocabularies().values()
    for name, behaviour in vocabulary.behaviours().items()
]
MINIATURE = vocabularies()["miniature"].behaviours()


def test_a_variable_is_swapped_and_the_rest_is_run():
    model = CausalModel(
        name="sum",
        inputs=("a", "b"),
        mechanisms={"sum": lambda v: v["a"] + v["b"], "answer": lambda v: v["sum"] * 10},
    )
    assert model.run({"a": 1, "b": 2}) == {"a": 1, "b": 2, "sum": 3, "answer": 30}
    assert model.swap({"a": 1, "b": 2}, {"a": 5, "b": 6}, "sum")["answer"] == 110
    assert model.swap({"a": 1, "b": 2}, {"a": 5, "b": 6}, "a")["answer"] == 70
    with pytest.raises(UnknownVariable):
        model.swap({"a": 1, "b": 2}, {"a": 5, "b": 6}, "c")


@pytest.mark.parametrize("behaviour", EVERY)
def test_every_behaviour_is_the_same_for_the_same_seed_and_swaps_what_it_says(behaviour):
    assert behaviour.pairs(8, 3) == behaviour.pairs(8, 3) != behaviour.pairs(8, 4)
    for row in behaviour.rows(24, 1, behaviour.swapped):
        told = behaviour.swap(row)
        assert set(told.expected) == set(behaviour.variables)
        assert told.base.strip() and told.base_answer
        for here, there in told.positions.values():
            assert here is None or here < len(told.base)
            assert there is None or there < len(told.counterfactual)
        same = behaviour.swap(type(row)(base=row.base, counterfactual=row.base, of_set="same"))
        assert set(same.expected.values()) == {told.base_answer}
    with pytest.raises(UnknownSet):
        behaviour.pairs(1, of_set="none")


def test_the_indirect_object_turns_the_signs_that_its_sets_say():
    behaviour = MINIATURE["ioi"]
    for name in behaviour.swapped:
        (told,) = behaviour.swaps(1, 5, [name])
        signs = told.signs["output_token"][0], told.signs["output_position"][1]
        assert signs == SETS_SIGNS[name]
        assert told.signs["output_token"][1] == told.signs["output_position"][0] == 1
        right, wrong = told.base_answer, told.distractor
        assert told.expected["output_token"] == (right if signs[0] == 1 else wrong)
        assert told.expected["output_position"] == (right if signs[1] == 1 else wrong)
        assert told.base.index(wrong.strip()) < told.base.index(right.strip())
        if name != "s1_io_flip":
            assert told.counterfactual_answer == wrong


def test_three_new_names_have_no_answer_and_are_other_names():
    behaviour = MINIATURE["ioi"]
    (row,) = behaviour.rows(1, 0, ["abc"])
    assert not {row.base[k] for k in "abc"} & {row.counterfactual[k] for k in "abc"}
    assert behaviour.causal.run(row.counterfactual)["answer"] == ""


@pytest.mark.parametrize("first", [10, 14, 39, 95])
@pytest.mark.parametrize("second", [10, 27, 78, 99])
def test_a_flipped_carry_keeps_the_tens_and_the_last_digit(first, second):
    base = {"first": first, "second": second}
    ones = first % 10 + second % 10
    if ones == 9:
        return
    other = flip_carry(base, random.Random(first + second))  # noqa: S311
    sums = other["first"] % 10 + other["second"] % 10
    assert sums == (ones - 10 if ones > 9 else ones + 10)
    assert (other["first"] // 10, other["second"] // 10) == (first // 10, second // 10)
    model = arithmetic(Sums(prompt="{first}+{second}=")).causal
    swapped = model.swap(base, other, "ones_carry")
    assert int(swapped["answer"]) == first + second + (-10 if ones > 9 else 10)
    assert int(model.run(base)["answer"]) == first + second


def test_nine_has_no_partner_and_is_not_drawn():
    rows = arithmetic(Sums(prompt="{first}+{second}=")).rows(300, 0, ["ones_carry"])
    assert all(r.base["first"] % 10 + r.base["second"] % 10 != 9 for r in rows)


def test_differences_borrow():
    model = arithmetic(Sums(prompt="{first}-{second}=", operator="minus", digits=3)).causal
    assert model.run({"first": 42, "second": 17})["answer"] == "025"
    borrowed = model.run({"first": 42, "second": 17}, {"ones_carry": 0})
    assert borrowed["answer"] == "035"


def test_choices_point_and_read():
    behaviour = MINIATURE["mcqa"]
    for row in behaviour.rows(30, 2, behaviour.swapped):
        told = behaviour.swap(row)
        base, other = behaviour.causal.run(row.base), behaviour.causal.run(row.counterfactual)
        pointed = base["letters"][other["answer_pointer"]]
        assert told.expected == {"answer_pointer": f" {pointed}", "answer": other["answer"]}
        at, _ = told.positions["correct_symbol"]
        assert told.base[at : at + 2] == f"{told.base_answer.strip()}."
        if row.of_set == "randomLetter":
            assert not set(base["letters"]) & set(other["letters"])
            assert told.expected["answer_pointer"] == told.base_answer


def test_attributes_change_only_for_who_asks_for_them():
    behaviour = MINIATURE["ravel"]
    told = attributes.swaps_of(behaviour, "capital", 60, seed=1)
    asking = [t for t in told if t.base.startswith("The capital")]
    assert len(told) == 60 and len(asking) == 20  # twice as many as for each of four others
    for swap in told:
        changed = swap.expected["capital"] != swap.base_answer
        assert not changed or swap in asking
    assert any(s.expected["capital"] != s.base_answer for s in asking)
    with pytest.raises(UnknownVariable):
        attributes.swaps_of(behaviour, "weather", 4)


@pytest.mark.parametrize("name", list(MINIATURE))
def test_the_miniature_answers_every_base(name, miniature_lm, answers):
    """Measured: 100 % of each of the five."""
    found = prepare_swaps(MINIATURE[name].swaps(24, 7), miniature_lm)
    assert not found.dropped or name == "mcqa"
    assert answers(miniature_lm, [(s.base, s.base_answer) for s in found.kept]) == 1.0


def test_the_miniature_decides_rightly_between_the_answers_of_most_pairs(miniature_lm):
    for name, least in (("ioi", 40), ("mcqa", 30), ("arithmetic-subtraction", 20), ("ravel", 15)):
        how = "whole" if name in {"ioi", "mcqa"} else "first"
        found = prepare(MINIATURE[name].pairs(40, 7), miniature_lm, how)
        assert len(found.kept) >= least
        assert len(found.kept) + len(found.dropped) == 40


def test_the_learned_gpt2_knows_pairs_of_names_that_it_never_saw(learned_gpt2, answers):
    behaviour = indirect_object(SHORT)
    rows = sentences(behaviour, SHORT, 3, held_out=True)
    swaps = [behaviour.swap(next(rows)) for _ in range(60)]
    found = prepare_swaps(swaps, learned_gpt2)
    assert not found.dropped and len(held_out_pairs(SHORT.names)) >= 10
    asked = [(s.base, s.base_answer) for s in found.kept]
    asked += [(s.counterfactual, s.counterfactual_answer) for s in found.kept]
    assert answers(learned_gpt2, asked) > 0.9


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"Arda": {"capital": "Mirabel"}}, "capital has 1 values"),
        ({"Arda": {"capital": "A"}, "Bela": {"capital": "A"}}, "capital has 1 values"),
        ({"Arda": {"capital": "A"}, "Bela": {"capital": "B"}, "Cora": {}}, "Cora has none"),
        ({}, "capital has 0 values"),
    ],
)
def test_a_table_without_counterfactuals_is_refused(table, problem):
    prompts = {"capital": ("The capital of {entity} is",)}
    with pytest.raises(OddTable, match=problem) as refused:
        attributes.attributes(
            attributes.Wording(prompts=prompts, neutral=("Of {entity}",), table=table)
        )
    assert refused.value.remedy


def test_a_form_that_names_nobody_is_refused():
    table = {"Arda": {"capital": "A"}, "Bela": {"capital": "B"}}
    with pytest.raises(OddTable, match="does not name"):
        attributes.attributes(
            attributes.Wording(prompts={"capital": ("It is",)}, neutral=("{entity}",), table=table)
        )
