"""Windows, soft-caps and learned positions under company: other decoders than Llama."""

import pytest

from models.errors import Refusal
from models.family import FAMILIES
from models.language import Language
from models.loading import load
from models.patch import Patch
from tests.engines.slots.conftest import TEXTS, generated, patch

KINDS = sorted(k for k, f in FAMILIES.items() if isinstance(f, Language) and f.writing == "slots")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "llama"])
def test_steered_and_plain_rows_are_each_what_generate_says_alone(desk, kind, tmp_path):
    hosted = load(kind, FAMILIES[kind].tiny(tmp_path))
    engine = desk.engine(hosted, slots=3, budget=24)
    rows = [
        desk.row(hosted, text, patch=_fitting(hosted, patch(i)) if i % 2 else Patch(), max_tokens=6)
        for i, text in enumerate((*TEXTS[:3], " ".join(TEXTS)[:60]))
    ]
    for row, tell in zip(rows, desk.ask(engine, *rows), strict=True):
        assert tell.ids == generated(hosted, row)


def _fitting(hosted, wanted):
    """Without the operations whose site the family calls otherwise."""
    try:
        hosted.check(wanted)
    except Refusal:
        return patch(0)
    return wanted
