"""The lens report through REST on a tiny random pipeline, and the miniature's judge on drawings."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from evaluation.errors import ProtocolDiffers, UnreadableCases
from evaluation.lens import Look, Question
from miniature.drawing import draw_picture
from miniature.world import Picture, Subject, make_world
from service.cli import app
from service.evaluating_lens import LensSide, MiniatureLensJudge, _layers, _parts

WORLD = make_world()


@pytest.fixture(scope="module")
def judge():
    return MiniatureLensJudge()


def drawn(*subjects, scene=None):
    told = tuple(Subject(name=n, colour=c) for n, c in subjects)
    return draw_picture(WORLD, Picture(subjects=told, scene=scene, seed=3))


def seen(judge, picture, *asked):
    questions = [Question(question=q, right=right, place=place) for q, right, place in asked]
    verdicts = judge([picture] * len(questions), questions)
    return [v.best == q.right for v, q in zip(verdicts, questions, strict=True)]


def test_the_miniatures_judge_sees_object_colour_scene_and_identity(judge):
    mug = drawn(("mug", "red"), scene="beach")
    wanted = [
        ("object", "mug", "whole"),
        ("colour", "red mug", "whole"),
        ("scene", "beach", "whole"),
    ]
    assert seen(judge, mug, *wanted) == [True, True, True]
    others = [
        ("object", "frog", "whole"),
        ("colour", "blue mug", "whole"),
        ("human", "human", "whole"),
    ]
    assert seen(judge, mug, *others) == [False, False, False]
    zira = drawn(("zira", None))
    wanted = [
        ("human", "human", "whole"),
        ("identity", "zira", "whole"),
        ("identity", "duko", "whole"),
    ]
    assert seen(judge, zira, *wanted) == [True, True, False]


def test_two_things_may_stand_in_any_order_unless_sides_are_told(judge):
    pair = drawn(("mug", "red"), ("frog", "blue"))
    assert seen(
        judge,
        pair,
        ("colour", "red mug", "either"),
        ("colour", "blue frog", "either"),
        ("colour", "blue frog", "right"),
    ) == [True, True, True]
    assert seen(
        judge,
        pair,
        ("colour", "blue mug", "either"),
        ("colour", "red mug", "right"),
        ("object", "mug", "whole"),
    ) == [False, False, False]


def test_what_the_miniatures_judge_cannot_answer_is_refused(judge):
    mug = drawn(("mug", "red"))
    for asked in (("prompt", "a mug", "whole"), ("colour", "mauve mug", "whole")):
        with pytest.raises(UnreadableCases, match="--judge"):
            seen(judge, mug, asked)


def test_a_look_comes_back_by_layer_and_seed_however_it_is_asked_for(tiller, monkeypatch):
    side = LensSide(tiller=tiller, model="tiny", steps=2)
    looks = [Look(prompt=p, layers=(0, 2, 4), seeds=(0, 1)) for p in ("a red mug", "a boat")]
    whole = list(side.draw(looks))
    assert [len(pictures) for pictures in whole] == [6, 6]
    monkeypatch.setattr("service.evaluating_lens.PICTURES", 4)
    assert [len(part.layers) for part in _parts(looks[0])] == [2, 1]
    for one, other in zip(whole, side.draw(looks), strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    [ordinary] = tiller.images.generate("a boat", model="tiny", seed=1, steps=2)
    from service.asking import pixels

    assert (pixels(ordinary.png) == whole[1][5]).all()


def test_layers_are_named_as_tiller_lens_names_them():
    assert _layers("all", 4) == (0, 1, 2, 3, 4)
    assert _layers("4,0", 4) == (0, 4)
    assert _layers("1::2", 4) == (1, 3)


def evaluated(url, folder, *more):
    prompts = folder / "prompts.txt"
    prompts.write_text("a red mug\na boat\n")
    words = ["evaluate", "lens", "-o", str(folder / "results"), "--url", url, "--model", "tiny"]
    words += ["--layers", "0,2,4", "--seeds", "1", "--steps", "3", "--cases", str(prompts)]
    return CliRunner().invoke(app, [*words, *more], catch_exceptions=False)


def test_two_prompts_and_three_layers_from_the_command_to_the_report(url, tiny_sd_folder, tmp_path):
    judge = ["--judge", str(tiny_sd_folder / "clip")]
    assert evaluated(url, tmp_path, *judge).exit_code == 0
    results = tmp_path / "results"
    told = json.loads((results / "lens.json").read_text())
    assert told["layers"] == [0, 2, 4] and told["cases"] == 2
    assert told["header"]["lens"]["ordinary"] == 4
    lines = [json.loads(line) for line in (results / "lens.jsonl").read_text().splitlines()]
    scores = [line for line in lines if line.get("line") == "score"]
    assert len(scores) == 2 * 3
    assert len({score["picture"] for score in scores}) == 6
    assert "## Shares" in (results / "lens.md").read_text()
    assert (results / "lens.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    before = (results / "lens.jsonl").read_bytes()
    assert evaluated(url, tmp_path, *judge).exit_code == 0  # nothing is drawn again
    assert (results / "lens.jsonl").read_bytes() == before


def test_a_folder_of_another_denoiser_or_judge_is_not_continued(
    url, bench, tiny_sd_folder, tmp_path, monkeypatch
):
    judge = tmp_path / "judge"
    shutil.copytree(tiny_sd_folder / "clip", judge)
    words = ["--judge", str(judge), "--limit", "1", "--layers", "4"]
    assert evaluated(url, tmp_path, *words).exit_code == 0
    header = json.loads((tmp_path / "results" / "lens.json").read_text())["header"]
    assert (header["steps"], header["mode"], header["dtype"]) == (3, "exact", "float32")
    with monkeypatch.context() as retrained:
        retrained.setattr(bench.host("tiny").ready, "pipeline", "0" * 64)
        with pytest.raises(ProtocolDiffers, match="another pipeline"):
            evaluated(url, tmp_path, *words)
    assert evaluated(url, tmp_path, *words).exit_code == 0
    config = judge / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ProtocolDiffers, match="another judge"):
        evaluated(url, tmp_path, *words)


def test_an_edit_is_looked_at_through_its_own_prompts(url, edit, tiny_sd_folder, tmp_path):
    words = ["evaluate", "lens", "-o", str(tmp_path), "--url", url, "--model", "tiny", "-e", edit]
    words += ["--layers", "0,4", "--seeds", "1", "--steps", "2"]
    words += ["--judge", str(tiny_sd_folder / "clip")]
    mounted = evaluated(url, tmp_path, "--help")
    assert mounted.exit_code == 0
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    told = json.loads((tmp_path / "lens.json").read_text())
    assert {c["arm"] for c in told["curves"]} == {"unedited", "edited"}
    assert {"new fact", "old fact"} <= {c["question"] for c in told["curves"]}
    assert told["header"]["edits"][0]["name"] == edit
