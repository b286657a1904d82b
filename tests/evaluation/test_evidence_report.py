"""What a page tells beside its table: how many rows, by which method, and why nothing is said."""

import pytest

from evaluation.evidence_report import page

LOST = [{"row": 0, "reason": "too long"}]
GATE = {"value": 0.4, "low": 0.3, "high": 0.5}


def suite(**stated):
    told = {"name": "letters", "verdict": "pass", "pairs": 4, "dropped": LOST, "circuit": None}
    numbers = {
        "m_before": 1.0,
        "m_after": 1.0,
        "change": [0.0, 0.1],
        "unchanged": 1.0,
        "drift": 0.0,
    }
    return {**told, **numbers, **stated}


def audit(*suites, circuit=True):
    settings = {"circuit": circuit, "least": 10}
    return page("edit_audit", {"verdict": "x", "suites": suites, "settings": settings}, {})


def test_a_circuits_page_tells_method_level_rows_and_the_interval():
    told = {
        "settings": {"method": "eap", "level": "node", "held_out": 0.5},
        "found_by": 3,
        "judged_by": 4,
        "kept": 7,
        "dropped": LOST * 2,
        "m_full": 0.1,
        "m_empty": 0.1,
        "interval": [-0.2, 0.3],
        "inconclusive": "they are alike",
    }
    text = page("circuit", told, {})
    assert "`eap` at node level; pairs 7 of 9: 3 find and 4 judge." in text
    assert "[-0.2, 0.3]" in text and "- 2 times: too long" in text
    whole = {**told, "settings": {**told["settings"], "held_out": 0.0}}
    assert "all of them find and judge" in page("circuit", whole, {})
    assert "own ways" not in text
    assert "own ways**: mlp-nodes, prune." in page(
        "circuit", {**told, "parity": ["mlp-nodes", "prune"]}, {}
    )


def test_a_variables_page_has_an_interval_for_each_place():
    cell = {
        "units": ["U"],
        "layer": 3,
        "place": "s2",
        "saes": ["block-3-topk"],
        "features": None,
        "values": {"a": 0.4},
        "refused": None,
        **GATE,
    }
    told = {
        "variable": "answer",
        "metric": "iia",
        "settings": {"featurizer": {"kind": "das"}},
        "kept": 10,
        "trained": 6,
        "scored": 4,
        "dropped": LOST,
        "best": cell,
        "cells": [cell, {**cell, "value": None, "values": {}, "refused": "nothing chosen"}],
        "indistinct": {},
        "control": {},
    }
    text = page("causal_variable", told, {})
    assert "rows 10 of 11: 6 train and 4 are scored" in text
    assert "Best: U, iia 0.4 [0.3, 0.5]." in text
    row = "| 3 | s2, block-3-topk | all | a 0.4 | 0.4 [0.3, 0.5] |"
    assert row in text and "nothing chosen" in text


def test_an_audits_page_tells_pairs_and_why_nothing_is_said():
    circuit = {"f_before": {}, "f_after": {}, "cmd_before": None, "cmd_after": None}
    circuit |= {"score_correlation": 1.0, "inconclusive": "m hardly moves"}
    text = audit(
        suite(),
        suite(name="few", verdict="inconclusive", pairs=4),
        suite(name="flat", verdict="inconclusive", pairs=12, circuit=circuit),
    )
    assert "| letters | pass | 4 of 5 |" in text and "[0, 0.1]" in text
    assert "- few: 4 pairs are kept, and 10 are needed." in text
    assert "- flat: f of the old circuit cannot be told: m hardly moves." in text
    assert "- letters:" not in text and "circuit: false" not in text
    assert "- 3 times: too long" in text
    assert "circuit: false" in audit(suite(), circuit=False)


@pytest.mark.parametrize(("reasons", "last"), [(12, "- 1 times"), (14, "- and 2 more rows, for 2")])
def test_reasons_that_are_cut_are_counted(reasons, last):
    told = audit(suite(dropped=[{"row": i, "reason": f"reason {i}"} for i in range(reasons)]))
    shown = told.split("## Rows that fell out")[1].split("## Provenance")[0].strip().splitlines()
    assert shown[-1].startswith(last)
