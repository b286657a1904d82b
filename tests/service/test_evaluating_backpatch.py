"""`tiller evaluate backpatch` on the shipped vision-language model."""

import json

import pytest
from typer.testing import CliRunner

from evaluation.backpatch.sweep import Place
from evaluation.errors import ProtocolDiffers
from miniature.sight.tasks import some
from service.evaluating import app
from service.evaluating_backpatch import _place, _studied, example_of

QUICK = ("--examples", "8", "--window", "1", "--aligned", "8", "-t", "scene")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studied")


@pytest.fixture(scope="module")
def told(folder):
    done = CliRunner().invoke(app, ["backpatch", "-o", str(folder), *QUICK, "--spoil", "pale:0.6"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_it_writes_tables_json_and_plots(folder, told):
    assert "| scene, pale 0.6 |" in told and "Beside the paper" not in told
    report = json.loads((folder / "study.json").read_text())
    (found,) = report["findings"]
    assert report["header"]["model"] == "miniature:vision-language"
    assert found["image"]["gain"]["examples"] == 4 and found["alignment"]["examples"] == 8
    assert (folder / "accuracy.png").stat().st_size and (folder / "alignment.png").stat().st_size
    assert (folder / "scene-pale-0.6" / "grid-image.png").exists()


def test_what_was_answered_is_kept_and_never_mixed_with_another_run(folder, told):
    assert told
    kept = json.loads((folder / "answers.json").read_text())
    answers = kept["books"]["scene, pale 0.6"]
    assert 2 * (4 * 67 + 4 * 2) <= len(answers) <= 2 * (4 * 67 + 4 * 2) + 4
    done = CliRunner().invoke(app, ["backpatch", "-o", str(folder), *QUICK, "--seed", "6"])
    assert isinstance(done.exception, ProtocolDiffers)
    assert json.loads((folder / "answers.json").read_text()) == kept


@pytest.mark.parametrize(
    "wrong", [("-t", "chess"), ("--spoil", "rain:3"), ("--spoil", "blur"), ("--plan", "9>2")]
)
def test_unknown_tasks_and_spoils_are_refused(tmp_path, wrong):
    done = CliRunner().invoke(app, ["backpatch", "-o", str(tmp_path), *wrong])
    assert done.exit_code == 2 and not list(tmp_path.iterdir())


def test_an_item_is_an_example_with_its_words():
    (item,) = some("colour order", "held-out", 1)
    example = example_of(item, 3)
    assert example.id == "colour order 3" and example.answer in example.labels
    assert example.described is not None
    assert example.described[0]["content"] == f"{item.description} {item.question}"
    assert example.messages[0]["content"][1]["text"] == item.question


def test_each_task_is_spoiled_in_each_way():
    names = [one.name for one in _studied(["sum", "scene"], 8, ["blur:1", "grain:30"], 5)]
    assert names == ["sum, blur 1", "sum, grain 30", "scene, blur 1", "scene, grain 30"]
    assert [one.paper for one in _studied(["sum", "scene"], 8, (), 5)] == ["arithmetic", None]


def test_a_plan_is_source_target_and_window():
    assert [_place("9:2:3"), _place("9:2")] == [
        Place(source=9, target=2, window=3),
        Place(source=9, target=2),
    ]
