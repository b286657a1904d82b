"""The SDK's and the command line's way to a model that sees."""

import asyncio
import json
import sys

import pytest
import typer

from service import cli
from service.cli_see import plan_of
from service.client import AsyncTiller, Tiller, TillerError
from service.client_language import words
from tests.service.shown import SEER, data_uri, drawn, written

PHOTO = written(drawn())
BEST = {"source": 3, "target": 1}
ASKED = {"model": SEER, "max_tokens": 6, "temperature": 0}


@pytest.fixture
def tiller(seer_url):
    with Tiller(seer_url) as client:
        yield client


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    return path


def test_a_picture_is_a_file_its_bytes_or_an_address(tiller, photo):
    ways = (photo, str(photo), PHOTO, data_uri(PHOTO), [PHOTO])
    answers = [tiller.see(way, "the king", **ASKED)[0] for way in ways]
    assert len({answer.text for answer in answers}) == 1
    [two] = tiller.see([PHOTO, written(drawn(seed=2))], "the king", system="a house", **ASKED)
    assert two.usage["prompt_tokens"] > answers[0].usage["prompt_tokens"] + 9


def test_a_plan_is_sent_and_told(tiller):
    [changed] = tiller.see(PHOTO, "the king", backpatch=BEST, compare=True, **ASKED)
    [plain] = tiller.see(PHOTO, "the king", **ASKED)
    assert changed.plain == plain.text
    assert changed.tiller["backpatch"]["pairs"] == [[3, 1]]
    tiller.presets.put("seen", backpatch=BEST, model=SEER)
    [named] = tiller.see(PHOTO, "the king", backpatch="seen@1", **ASKED)
    assert named.text == changed.text
    assert named.tiller["backpatch"]["preset"]["name"] == "seen"
    with pytest.raises(TillerError) as told:
        tiller.see(PHOTO, "the king", backpatch={"source": 9, "target": 1}, **ASKED)
    assert told.value.code == "bad_back_patch"


def test_a_stream_and_the_other_client_say_the_same(tiller, seer_url):
    [whole] = tiller.see(PHOTO, "the king", **ASKED)
    assert "".join(words(tiller.texts.see_events(PHOTO, "the king", **ASKED))) == whole.text

    async def later():
        async with AsyncTiller(seer_url) as client:
            return await client.see(PHOTO, "the king", **ASKED)

    assert asyncio.run(later())[0].text == whole.text


@pytest.fixture
def done(seer_url, monkeypatch, capsys):
    """A function: what a command wrote, and what it noted."""
    monkeypatch.setenv("TILLER_URL", seer_url)

    def command(*told, code=0):
        monkeypatch.setattr(sys, "argv", ["tiller", *map(str, told)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        assert (ended.value.code or 0) == code, found.err
        return found.out, found.err

    return command


def test_the_command_sees(done, photo, tiller):
    [plain] = tiller.see(PHOTO, "the king", **ASKED)
    said, _ = done("see", photo, "the king", "-m", SEER, "--max-tokens", 6)
    assert said.rstrip("\n") == plain.text.rstrip("\n")
    both, notes = done(
        "see", photo, photo, "the king", "-m", SEER, "--max-tokens", 6, "--compare",
        "--source", 3, "--target", 1, "--window", 3,
    )  # fmt: skip
    assert "changed" in both
    assert "plain" in both
    assert "18 of 18 visual tokens back-patched, layers 2 -> 0, 3 -> 1" in " ".join(notes.split())
    done("preset", "put", "by-hand", "--source", 3, "--target", 1, "-m", SEER)
    _, notes = done("see", photo, "the king", "-m", SEER, "-b", "by-hand@1", "--max-tokens", 6)
    assert "by by-hand@1" in " ".join(notes.split())
    told = ("--source", 3, "--target", 1, "--positions", "reference", "-m", SEER)
    done("preset", "put", "marked", *told)
    kept = json.loads(done("preset", "show", "marked", 1)[0])
    assert kept["backpatch"]["positions"] == "reference"
    _, notes = done("preset", "put", "both", "--source", 3, "--target", 1, "--mode", "amp", code=2)
    assert "or a plan" in " ".join(notes.split())
    _, notes = done("see", photo, "the king", "-m", SEER, "--source", 9, "--target", 1, code=1)
    assert "Nothing leads" in " ".join(notes.split())


def test_what_is_missing_or_broken_is_named_as_it_was_typed(done, photo, tmp_path):
    _, notes = done("see", photo, code=2)
    assert "no question behind" in " ".join(notes.split())
    _, notes = done("see", "How many?", code=2)
    assert "no picture in front of" in " ".join(notes.split())
    broken = tmp_path / "broken [red].png"
    broken.write_bytes(b"no picture")
    _, notes = done("see", photo, broken, "the king", "-m", SEER, "--system", "a house", code=1)
    assert "broken [red].png is not a picture" in " ".join(notes.split()).replace(
        "broken[", "broken ["
    )
    assert "image_url" not in notes
    _, notes = done("preset", "put", "nothing", code=2)
    assert "--source and --target" in " ".join(notes.replace("│", "").split())


def test_a_preset_keeps_its_own_plan():
    assert plan_of(None, {}) is None
    assert plan_of("a@1", {}) == "a@1"
    assert plan_of(None, BEST) == BEST
    with pytest.raises(typer.BadParameter):
        plan_of("a@1", BEST)
