"""An order as an engine's requests."""

from models.patch import Patch
from service.language_rows import lines_of
from service.orders import TextOrder


def test_rows_of_tenants_share_nothing():
    order = TextOrder(id="one", tenant="ann", prompts=("a", "b"), compare=True)
    lines = lines_of(order, [[1], [2]], [Patch()] * 2, 16)
    assert [line.request.realm for line in lines] == ["ann"] * 4
