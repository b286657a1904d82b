"""What of a data set would be looked at for longer than a request waits is refused at once."""

import base64
import io

import pytest
from PIL import Image

from service.datasets import dataset_of
from service.errors import TooMuch
from service.limits import check_dataset
from service.schema_evaluations import DatasetBody
from service.settings import Limits

PAIR = {"clean": "a cup", "corrupted": "a car", "correct": " A", "incorrect": " B"}
SWAP = {"base": "a", "counterfactual": "b", "base_answer": "c", "expected": {"x": "d"}}


def body(**told):
    return DatasetBody(model="m", **told)


@pytest.mark.parametrize(
    ("told", "param"),
    [
        ({"generator": "ioi", "n": 4}, "n"),
        ({"pairs": [PAIR] * 4}, "pairs"),
        ({"swaps": [SWAP] * 4}, "swaps"),
        ({"task": "ioi", "rows": [{"prompt": "x"}] * 4}, "rows"),
    ],
)
def test_rows_beyond_the_limit_are_refused_by_their_key(told, param):
    check_dataset(body(**told), Limits(dataset_rows=4))
    with pytest.raises(TooMuch) as refused:
        check_dataset(body(**told), Limits(dataset_rows=3))
    assert refused.value.param == param and "4; this service allows 3" in refused.value.problem


def test_long_texts_are_refused_though_they_are_few():
    long = body(pairs=[{**PAIR, "clean": "a " * 5000}] * 10)
    check_dataset(long, Limits(dataset_characters=101_000))
    with pytest.raises(TooMuch) as refused:
        check_dataset(long, Limits(dataset_characters=100_000))
    assert refused.value.param == "pairs"


def test_pictures_are_counted_by_the_pixels_that_are_decoded():
    told = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(told, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(told.getvalue()).decode()}"
    row = {"question": "?", "clean": uri, "corrupted": uri, "correct": "a", "incorrect": "b"}
    assert dataset_of(body(pictures=[row]), Limits(dataset_pixels=2 * 64 * 64)).pictures
    with pytest.raises(TooMuch, match="pixels together"):
        dataset_of(body(pictures=[row]), Limits(dataset_pixels=2 * 64 * 64 - 1))
