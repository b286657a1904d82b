"""Advice on back-patching over REST, on the miniature's vision-language model."""

import pytest

from miniature.sight.tasks import some
from service.client import Tiller, TillerError
from service.settings import Model, Server, Settings
from tests.service.shown import data_uri, written

MODEL = "miniature-vl"


@pytest.fixture(scope="module")
def seeing(tmp_path_factory, serving):
    model = Model(name=MODEL, path="miniature:vision-language", slots=2)
    home = tmp_path_factory.mktemp("seeing")
    settings = Settings(home=home, server=Server(port=0, drain_seconds=20.0), models=(model,))
    with serving(settings) as (url, _), Tiller(url) as tiller:
        yield tiller


def rows(n):
    items = some("feeling", "held-out", 2 * n, 3)
    return [
        {
            "question": one.question,
            "clean": data_uri(written(one.picture)),
            "corrupted": data_uri(written(other.picture.resize(one.picture.size))),
            "correct": one.answer,
            "incorrect": other.answer,
        }
        for one, other in zip(items[::2], items[1::2], strict=True)
    ]


def test_layers_whose_visual_tokens_carry_the_answer_are_named(seeing):
    made = seeing.datasets.make(model=MODEL, pictures=rows(6))
    assert made["n"] == 6
    assert made["pictures"]["kept"] + len(made["pictures"]["dropped"]) == 6
    begun = seeing.evaluations.start(
        "layer_advice", model=MODEL, dataset=made["id"], params={"operation": "backpatch"}
    )
    result = seeing.jobs.wait(begun["id"])["result"]
    report = result["report"]
    assert report["by"] == "back" and report["pairs"] == made["pictures"]["kept"]
    assert {"visual", "last", "back"} == set(report["layers"][0]["effects"])
    first, last = report["targets"]
    assert first == 0 < last < len(report["layers"]) - 1
    assert report["recommended"][0] > 0
    page = seeing.evaluations.artifact(result["evaluation"], "report.md").decode()
    assert "visual" in page and "target" in page
    assert seeing.evaluations.artifact(result["evaluation"], "layers.png")[:4] == b"\x89PNG"


def test_rows_without_pictures_and_pictures_that_are_none_are_refused(seeing):
    pair = {"clean": "a", "corrupted": "b", "correct": " A", "incorrect": " B"}
    made = seeing.datasets.make(model=MODEL, pairs=[pair])
    with pytest.raises(TillerError) as refused:
        seeing.evaluations.start(
            "layer_advice", model=MODEL, dataset=made["id"], params={"operation": "backpatch"}
        )
    assert refused.value.code == "wrong_rows"
    broken = {**rows(1)[0], "corrupted": data_uri(b"no picture")}
    with pytest.raises(TillerError) as refused:
        seeing.datasets.make(model=MODEL, pictures=[broken])
    assert refused.value.code == "not_an_image"
