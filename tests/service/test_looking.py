"""`tiller lens` and the SDK's lens, against a real service."""

import asyncio
import io

import pytest
from PIL import Image
from typer.testing import CliRunner

from service.cli import app
from service.client import AsyncTiller, TillerError
from service.looking import layers_in

MODEL, PROMPT = "tiny", "the king of the sea"


@pytest.fixture(scope="module")
def run():
    return lambda *words: CliRunner().invoke(app, [*map(str, words)])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("all", "all"),
        ("0,4,8", [0, 4, 8]),
        ("7", [7]),
        ("0:9:2", {"start": 0, "stop": 9, "step": 2}),
        ("2:", {"start": 2}),
        ("::3", {"step": 3}),
    ],
)
def test_layers_are_written_as_in_python(text, meant):
    assert layers_in(text) == meant


@pytest.mark.parametrize("text", ["", "some", "1-4", "-1", "0,", "1:2:3:4"])
def test_other_layers_are_wrong_usage(run, url, text):
    done = run("lens", PROMPT, f"--layers={text}", "-m", MODEL, "--url", url)
    assert done.exit_code == 2


def test_the_command_writes_the_sheet_and_the_pictures(run, url, tiller, edit, tmp_path):
    sheet, folder = tmp_path / "strip.png", tmp_path / "single"
    words = ["lens", PROMPT, "-o", sheet, "-m", MODEL, "--url", url, "--pictures", folder]
    done = run(*words, "--layers", "::2", "--seed", 3, "-n", 2, "-e", edit, "--noise", "per_layer")
    assert done.exit_code == 0, done.output
    view = tiller.lens(
        PROMPT, model=MODEL, layers=[0, 2, 4], seed=3, n=2, edits=[edit], noise="per_layer"
    )
    assert sheet.read_bytes() == view.sheet
    for picture in view.pictures:
        path = folder / f"layer-{picture.layer:02}-seed-{picture.seed}.png"
        assert path.read_bytes() == picture.png
    assert "layers 0, 2, 4" in done.output and f"{edit}@1" in done.output
    assert "seeds 3, 4" in done.output


def test_what_the_service_refuses_is_told(run, url, tmp_path):
    words = ["lens", PROMPT, "-o", tmp_path / "s.png", "-m", MODEL, "--url", url]
    done = run(*words, "--layers", "9")
    assert isinstance(done.exception, TillerError)
    assert done.exception.code == "bad_layer" and done.exception.status == 422
    assert not (tmp_path / "s.png").exists()


def test_both_clients_see_the_same(url, tiller):
    async def later():
        async with AsyncTiller(url) as own:
            view = await own.lens(PROMPT, model=MODEL, seed=3)
            told = [e async for e in own.images.lens_events(PROMPT, model=MODEL, seed=3)]
            return view, told

    now = tiller.lens(PROMPT, model=MODEL, seed=3)
    view, told = asyncio.run(later())
    assert [p.png for p in now.pictures] == [p.png for p in view.pictures]
    assert [p.layer for p in now.pictures] == [0, 1, 2, 3, 4]
    assert {p.norm for p in now.pictures} == {"final norm"}
    assert now.sheet == view.sheet and Image.open(io.BytesIO(now.sheet)).format == "PNG"
    assert told[-1]["type"] == "lens.sheet"
    assert now.tiller["lens"]["encoder"] == "text"


def test_a_refusal_on_the_way_is_raised(tiller, monkeypatch, bench):
    from models.errors import PatchNotApplied

    host = bench.hosts[MODEL].host

    def broken(*_, **__):
        raise PatchNotApplied(frozenset({0}), "text.exit", 1, 0)

    monkeypatch.setattr(host.family, "encode", broken)
    host.engine.embeddings.kept.clear()
    with pytest.raises(TillerError, match="report it") as refused:
        list(tiller.images.lens_events("a prompt that was never read", model=MODEL))
    assert refused.value.code == "patch_not_applied"
