"""The page's example runs and finds what the page says."""

import re
from pathlib import Path
from typing import get_args

from evaluation.circuits.replacements import Ablation
from evaluation.circuits.study import Circuit, Method

PAGE = (Path(__file__).parents[3] / "docs" / "circuits.md").read_text(encoding="utf-8")


def test_the_example_finds_the_indirect_objects_circuit():
    [block] = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(block, "circuits.md", "exec"), names)  # noqa: S102
    found = names["found"]
    assert found.inconclusive is None
    assert found.cmd < 0.03
    assert {p.k: p for p in found.curve}[0.02].f_absolute > 0.85


def test_every_setting_and_method_is_explained():
    for name in (*get_args(Method), *get_args(Ablation)):
        assert f"`{name}`" in PAGE
    for name in Circuit.__dataclass_fields__.keys() - {"kind"}:
        assert f"`{name}" in PAGE
