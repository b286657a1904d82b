"""The page about causal variables is true: its example runs, its tables are whole."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

from evaluation.gates import FeatureGate, Gate
from evaluation.variables.settings import Control, Kind

PAGE = (Path(__file__).parents[3] / "docs" / "causal-variables.md").read_text(encoding="utf-8")


def test_its_example_finds_the_letter(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(block, "causal-variables.md", "exec"), {})  # noqa: S102
    early, late, controls = capsys.readouterr().out.splitlines()
    assert early.startswith("0 last_token 0.") and float(early.split()[2]) <= 0.1
    assert late.startswith("5 last_token") and float(late.split()[2]) >= 0.9
    assert controls.startswith("0.0 ") and "answer_pointer" in controls


def test_every_kind_and_control_is_told():
    for name in (*get_args(Kind), *get_args(Control)):
        assert f"`{name}`" in PAGE
    measured = {"iia", "iia_random_matched", "effect_on_metric", "off_target_kl", "output_score"}
    assert measured <= {field.name for field in fields(FeatureGate)}
    for name in (*measured, "tau", "margin", "kappa", "least", "draws", "strength", "jointly"):
        assert f"`{name}" in PAGE
        assert name in measured or name in {field.name for field in fields(Gate)}
