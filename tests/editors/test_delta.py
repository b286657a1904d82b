import json

import pytest
import torch
from safetensors.torch import save

from editors.delta import Delta, Factors, Limits
from editors.errors import BadDelta
from models.tensor_file import header_of

SITE = "text_encoder.text_model.encoder.layers.1.mlp.fc2"


def some_delta(out=6, inner=8, n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(n, inner, generator=generator)
    values = torch.randn(n, out, generator=generator)
    left = values.mT @ torch.linalg.inv(keys @ keys.mT)
    return Delta(
        {"method": "refact", "base": {"fingerprint": "f"}},
        {SITE: Factors(left, keys, keys, keys, values)},
    )


def test_a_delta_read_back_is_the_same_delta_with_the_same_digest():
    delta = some_delta()
    again = Delta.read(delta.data)
    assert again.digest == delta.digest and again.data == delta.data
    assert again.header["base"] == {"fingerprint": "f"}
    assert header_of(delta.data)["method"] == "refact"


def test_a_changed_header_is_another_version():
    assert some_delta().with_header(report={"passed": True}).digest != some_delta().digest


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80\x04pickle", b"\xff" * 64, save({"a": torch.zeros(2)}), some_delta().data[:-8]],
    ids=["empty", "pickle", "garbage", "foreign", "cut"],
)
def test_what_is_no_delta_is_refused(data):
    with pytest.raises(BadDelta):
        Delta.read(data)


def tampered(**changes):
    f = some_delta().factors[SITE]
    parts = {
        n: changes.get(n, getattr(f, n)) for n in ("left", "right", "keys", "solved", "values")
    }
    return save(
        {f"{SITE}.{n}": t.contiguous().clone() for n, t in parts.items()},
        metadata={"header": json.dumps({"format": 1})},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"left": torch.full((6, 2), float("nan"))},
        {"right": torch.zeros(2, 8)},
        {"left": torch.zeros(6, 2)},
        {"left": 1e9 * torch.ones(6, 2)},
    ],
    ids=["not finite", "no change at its keys", "misses its values", "norm"],
)
def test_factors_that_cannot_be_trusted_are_refused(changes):
    with pytest.raises(BadDelta):
        Delta.read(tampered(**changes))


def test_limits_bind():
    with pytest.raises(BadDelta):
        Delta.read(some_delta().data, Limits(file_bytes=100))
    with pytest.raises(BadDelta):
        Delta.read(some_delta().data, Limits(rank=1))


def test_strength_scales_and_zero_changes_nothing():
    (operation,) = some_delta().patch(0.0)
    assert float((operation.left @ operation.right).abs().max()) == 0
    (whole,), (half,) = some_delta().patch(), some_delta().patch(0.5)
    torch.testing.assert_close(2 * half.left @ half.right, whole.left @ whole.right)
