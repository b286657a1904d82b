"""Rows as tensors: answers behind bases, columns by name, rows that cannot be used."""

from dataclasses import replace

import pytest
import torch

from evaluation.behaviours.swaps import PreparedSwaps
from evaluation.variables.errors import NothingKept
from evaluation.variables.keeping import keep
from evaluation.variables.objective import contains
from evaluation.variables.score import greedy
from evaluation.variables.table import NO_LABEL, positions_of, table, usable
from tests.evaluation.variables.conftest import drawn


def test_answers_are_forced_behind_the_base_and_cut(llama):
    swaps = drawn(llama, answer=3)
    swaps[1] = replace(swaps[1], expected={"x": swaps[1].expected["x"][:1]})
    made = table(swaps, "x", ["mid"])
    assert made.rows.lengths.tolist() == [9, 9, 10]
    assert made.rows.ids[0, :9].tolist() == [*swaps[0].base, *swaps[0].expected["x"][:2]]
    assert made.wanted.tolist() == [[6, 7, 8], [8, 8, 8], [7, 8, 9]]
    assert made.labels[1].tolist() == [swaps[1].expected["x"][0], NO_LABEL, NO_LABEL]
    assert made.labels[2].tolist() == list(swaps[2].expected["x"])
    cut = table(swaps, "x", ["mid"], new_tokens=2)
    assert cut.labels[0].tolist() == list(swaps[0].expected["x"][:2])
    assert cut.rows.lengths.tolist() == [8, 9, 9]
    own, there = made.columns["mid"]
    assert own.tolist() == [[2], [3], [4]] and there.tolist() == [[4], [4], [4]]
    assert made.sets == ("first", "second")


def test_every_token_is_meant_in_both_prompts(llama):
    swaps = drawn(llama, ((4, 4), (6, 6)))
    own, there = table(swaps, "x", ["all"]).columns["all"]
    assert torch.equal(own, there)
    assert own.tolist() == [[0, 1, 2, 3, -1, -1], [0, 1, 2, 3, 4, 5]]


def test_rows_fall_out_one_by_one_with_their_reasons(llama):
    swaps = drawn(llama)
    swaps[0] = replace(swaps[0], expected={})
    swaps[2] = replace(swaps[2], positions={"last_token": (7, 7)})
    kept, dropped = usable(swaps, "x", ["mid"])
    assert kept == (swaps[1],)
    assert [(d.row, d.reason) for d in dropped] == [
        (0, "nothing is expected when x is swapped"),
        (2, "it has no position mid"),
    ]
    assert positions_of(swaps) == ("last_token",)
    with pytest.raises(NothingKept, match="7 and 9 tokens"):
        usable(drawn(llama)[:1], "x", ["all"])


def test_dropped_rows_keep_the_numbers_that_they_were_brought_under(llama):
    swaps = drawn(llama, ((7, 7),) * 5)
    said = greedy(llama, [s.base for s in swaps], 1)
    others = greedy(llama, [s.counterfactual for s in swaps], 1)
    told = [
        replace(s, base_answer_text=a, counterfactual_answer_text=b)
        for s, a, b in zip(swaps, said, others, strict=True)
    ]
    told[0] = replace(told[0], expected={})
    told[3] = replace(told[3], base_answer_text="§")
    _, gone = usable([replace(told[0], expected={}), told[1]], "x", ["mid"])
    brought = PreparedSwaps(kept=tuple(told), dropped=(replace(gone[0], row=1, reason="early"),))
    kept, dropped = keep(llama, brought, "x", ["mid"], new_tokens=1, right=contains, first=10)
    # Row 1 fell out before, so the five that came are rows 0, 2, 3, 4, 5.
    assert kept == (told[1], told[2], told[4])
    assert [d.row for d in dropped] == [10, 11, 14]
    assert [d.reason.split()[0] for d in dropped] == ["nothing", "early", "the"]
