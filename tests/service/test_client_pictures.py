"""The SDK and `tiller image` over a running service: the same picture again, before and after."""

import asyncio
import io
import json
import threading

import httpx2
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from evaluation.sheet import GAP, MARGIN
from service.cli import app
from service.client import AsyncTiller, Tiller, TillerError
from service.comparing import SMALLEST
from service.errors import NoRecipe, OtherWeights
from service.recipe import KEY, Recipe

MODEL, PROMPT = "tiny", "the king of the sea"


def pixels(png):
    return Image.open(io.BytesIO(png)).tobytes()


def rewritten(png, **changes):
    """The picture with another recipe."""
    told = {**json.loads(Image.open(io.BytesIO(png)).info[KEY]), **changes}
    chunks, buffer = PngInfo(), io.BytesIO()
    chunks.add_itxt(KEY, json.dumps(told))
    Image.open(io.BytesIO(png)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


SIDE, LABELS = SMALLEST, 190
"""Of a small picture on a sheet, and the width of what stands beside a strip."""


def enlarged(png):
    """A picture as it stands on a sheet."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).tobytes()


def cells_of(png, *, strips, columns):
    """The pictures on a sheet, strip by strip; every strip has a label, every column a heading."""
    sheet = Image.open(io.BytesIO(png)).convert("RGB")
    left = MARGIN + LABELS
    below = sheet.height - MARGIN - strips * (SIDE + 15 + GAP)
    for x in range(left, sheet.width - 2 * MARGIN, SIDE + GAP):
        assert len(sheet.crop((x, below - 19, x + SIDE, below)).getcolors()) > 1, "no heading"
    found = []
    for top in range(below, sheet.height - MARGIN, SIDE + 15 + GAP):
        assert len(sheet.crop((MARGIN, top, left - GAP, top + SIDE)).getcolors()) > 1, "no label"
        places = [(left + i * (SIDE + GAP), top) for i in range(columns)]
        boxes = [(x, y, x + SIDE, y + SIDE) for x, y in places]
        found.append([sheet.crop(box).tobytes() for box in boxes])
    assert sheet.width == left + columns * (SIDE + GAP) + MARGIN
    return found


class Crowd:
    """Callers who want pictures that differ in everything, for the length of a block."""

    def __init__(self, url, edit):
        self.url, self.edit, self.over, self.drawn = url, edit, threading.Event(), 0
        self.threads = [threading.Thread(target=self.ask, args=(i,)) for i in range(3)]

    def ask(self, i):
        with Tiller(self.url) as tiller:
            while not self.over.is_set():
                i += 1
                tiller.images.generate(
                    f"{PROMPT} {i}",
                    model=MODEL,
                    edits=[{"name": self.edit, "strength": 0.1 * (i % 9)}] if i % 2 else (),
                    seed=i,
                    n=1 + i % 2,
                    steps=2 + i % 7,
                    guidance_scale=(7.5, 1.0, 3.0)[i % 3],
                    negative_prompt="a red boat" if i % 4 else None,
                    sampler=("ddim", "euler", "pndm")[i % 3],
                    size=("16x16", "32x16")[i % 5 == 0],
                )
                self.drawn += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()


def drawn(tiller, edit, **changes):
    asked = {
        "model": MODEL,
        "edits": [{"name": edit, "strength": 0.7}],
        "seed": 11,
        "steps": 9,
        "guidance_scale": 4.5,
        "negative_prompt": "a boat",
        "negative_edits": "plain",
        "sampler": "euler",
        "size": "32x16",
    }
    return tiller.images.generate(PROMPT, **{**asked, **changes})[0]


def test_the_picture_says_all_that_it_was_asked_for_and_nothing_secret(tiller, edit):
    picture = drawn(tiller, edit)
    said = json.loads(Image.open(io.BytesIO(picture.png)).info[KEY])
    applied = picture.tiller["edits"][0]
    assert said == {
        "prompt": PROMPT,
        "negative_prompt": "a boat",
        "negative_edits": "plain",
        "seed": 11,
        "steps": 9,
        "guidance_scale": 4.5,
        "sampler": "euler",
        "size": "32x16",
        "model": MODEL,
        "fingerprint": picture.tiller["fingerprint"],
        "pipeline": picture.tiller["pipeline"],
        "edits": [{"name": f"{edit}@1", "digest": applied["digest"], "strength": 0.7}],
        "patch": picture.tiller["patch"],
        "mode": "exact",
        "slots": 4,
        "slot": None,
        "batch": None,
        "done": None,
        "lens": None,
        "dtype": "float32",
        "denoiser_dtype": "float32",
        "device": "cpu",
        "version": picture.tiller["version"],
    }


def test_the_same_request_gives_the_same_file_alone_and_in_a_busy_batch(url, tiller, edit):
    alone = drawn(tiller, edit)
    with Crowd(url, edit) as crowd:
        busy = [drawn(tiller, edit) for _ in range(6)]
    assert crowd.drawn > 3
    assert [picture.png for picture in busy] == [alone.png] * 6


def test_a_picture_is_drawn_again_to_the_bit_from_a_busy_batch_into_a_busy_batch(url, tiller, edit):
    with Crowd(url, edit):
        first = drawn(tiller, edit)
    quiet = tiller.images.redraw(first.png)
    with Crowd(url, edit) as crowd:
        busy = [tiller.images.redraw(first.png) for _ in range(4)]
    assert crowd.drawn > 3
    for again in (quiet, *busy):
        assert (again.off, again.differences) == (0, ())
        assert pixels(again.picture.png) == pixels(first.png)


def test_an_alias_that_moved_in_between_does_not_matter(url, tiller, edit, fitted):
    name = f"{edit}-moving"
    fitted(url, name)
    tiller.edits.promote(name, 1, force=True)
    first = drawn(tiller, f"{name}@live")
    second = fitted(url, name, target="a green house in the snow")
    tiller.edits.promote(name, second["version"], force=True)
    assert pixels(drawn(tiller, f"{name}@live").png) != pixels(first.png)
    again = tiller.images.redraw(first.png)
    assert again.off == 0
    assert again.picture.tiller["edits"][0]["version"] == 1


def test_a_picture_without_a_seed_and_the_second_of_several_can_be_drawn_again(tiller):
    for picture in tiller.images.generate(PROMPT, model=MODEL, n=2):
        assert tiller.images.redraw(picture.png).off == 0


def test_other_weights_are_refused_before_anything_is_drawn_unless_forced(tiller):
    [picture] = tiller.images.generate(PROMPT, model=MODEL, seed=3)
    other = rewritten(picture.png, pipeline="0" * 64)
    with pytest.raises(OtherWeights):
        tiller.images.redraw(other)
    again = tiller.images.redraw(other, force=True)
    assert again.off == 0
    assert "pipeline" in again.differences[0]


def test_another_mode_and_another_version_are_told(tiller):
    [picture] = tiller.images.generate(PROMPT, model=MODEL, seed=3)
    again = tiller.images.redraw(rewritten(picture.png, mode="fast", version="0.0.1"))
    told = " ".join(again.differences)
    assert "mode was fast, here it is exact" in told and "version was 0.0.1" in told


def test_an_edit_that_is_gone_is_refused(tiller, edit):
    png = rewritten(
        drawn(tiller, edit).png,
        edits=[{"name": "gone@1", "digest": "0" * 64, "strength": 1.0}],
    )
    with pytest.raises(TillerError) as refused:
        tiller.images.redraw(png)
    assert refused.value.code == "unknown_digest"


def test_a_preview_says_that_it_is_one_and_how_it_goes_on(openai_like, tiller):
    previews, finished = openai_like
    assert [Recipe.read(png).done for png in previews] == [2, 4]
    again = tiller.images.redraw(previews[0])
    assert "preview after 2 steps" in " ".join(again.differences)
    assert pixels(again.picture.png) == pixels(finished)


@pytest.fixture
def openai_like(url):
    """Previews and picture of a stream, read by the openai package."""
    import base64

    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    events = client.images.generate(
        model=MODEL,
        prompt=PROMPT,
        stream=True,
        partial_images=2,
        extra_body={"seed": 3, "steps": 6, "sampler": "ddim"},
    )
    found = {}
    for event in events:
        found.setdefault(event.type, []).append(event)
    read = {
        kind: [base64.b64decode(e.b64_json) for e in of if getattr(e, "b64_json", None)]
        for kind, of in found.items()
    }
    [finished] = read["image_generation.completed"]
    return read["image_generation.partial_image"], finished


def test_an_operator_can_keep_prompts_out_of_pictures(settings_for, serving):
    settings = settings_for()
    silent = settings.server.model_copy(update={"picture_metadata": False})
    with (
        serving(settings.model_copy(update={"server": silent})) as (url, _),
        Tiller(url) as tiller,
    ):
        [picture] = tiller.images.generate(PROMPT, model=MODEL, seed=3)
        assert Image.open(io.BytesIO(picture.png)).info == {}
        with pytest.raises(NoRecipe):
            tiller.images.redraw(picture.png)
        answer = httpx2.post(
            f"{url}/v1/images/generations",
            json={"model": MODEL, "prompt": PROMPT, "response_format": "url"},
        )
        assert PROMPT.encode() not in httpx2.get(answer.json()["data"][0]["url"]).content


def test_a_comparison_has_the_same_seeds_in_every_strip(tiller, edit):
    half = {"name": edit, "strength": 0.5}
    compared = tiller.images.compare(PROMPT, [f"{edit}@live", half], model=MODEL, n=3)
    assert list(compared.pictures) == [
        "without",
        f"with {edit}@live = {edit}@1",
        f"with {edit} = {edit}@1 x 0.5",
    ]
    seeds = {tuple(p.seed for p in pictures) for pictures in compared.pictures.values()}
    assert len(seeds) == 1 and len(next(iter(seeds))) == 3
    shown = {tuple(pixels(p.png) for p in of) for of in compared.pictures.values()}
    assert len(shown) == 3
    on_sheet = cells_of(compared.sheet, strips=3, columns=3)
    assert on_sheet == [[enlarged(p.png) for p in of] for of in compared.pictures.values()]


def test_what_is_compared_comes_on_top_of_the_edits_that_all_have(tiller, edit, url, fitted):
    fitted(url, "on-top", prompt="the queen of the hill", subject="queen")
    tiller.edits.promote("on-top", 1, force=True)
    compared = tiller.images.compare(PROMPT, [edit], model=MODEL, edits=["on-top"], seed=1)
    told = [[e["name"] for e in of[0].tiller["edits"]] for of in compared.pictures.values()]
    assert told == [["on-top"], ["on-top", edit]]


def test_the_asynchronous_client_redraws_and_compares_too(url, edit):
    async def both():
        async with AsyncTiller(url) as tiller:
            compared = await tiller.images.compare(PROMPT, [edit], model=MODEL, seed=2)
            again = await tiller.images.redraw(compared.pictures["without"][0].png)
            return compared, again

    compared, again = asyncio.run(both())
    assert again.off == 0
    assert len(compared.pictures) == 2


# The command line


@pytest.fixture
def run(url):
    def invoke(*words):
        return CliRunner().invoke(app, ["image", *map(str, words), "--url", url])

    return invoke


def test_from_draws_the_picture_of_a_file_again(run, tmp_path, edit):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    asked = ("-m", MODEL, "-e", edit, "--steps", 4, "--sampler", "euler")
    made = run(PROMPT, "-o", first, *asked)
    assert made.exit_code == 0, made.output
    told = run("--from", first, "-o", again)
    assert told.exit_code == 0, told.output
    assert "equal to the bit" in " ".join(told.output.split())
    assert pixels(again.read_bytes()) == pixels(first.read_bytes())


def test_from_refuses_other_weights_unless_forced(run, tmp_path):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    run(PROMPT, "-o", first, "-m", MODEL, "--seed", 1)
    first.write_bytes(rewritten(first.read_bytes(), fingerprint="0" * 64))
    assert isinstance(run("--from", first, "-o", again).exception, OtherWeights)
    assert not again.exists()
    forced = run("--from", first, "-o", again, "--force")
    assert forced.exit_code == 0
    assert "fingerprint was 000000000000" in " ".join(forced.output.split())


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--from", "FILE", "a king"),
        ("--from", "FILE", "--seed", "3"),
        ("--from", "FILE", "--compare", "x"),
        ("--from", "FILE", "-o", "FILE"),
        ("--from", "no such file"),
    ],
)
def test_from_and_a_prompt_do_not_mix(run, tmp_path, words):
    file = tmp_path / "first.png"
    run(PROMPT, "-o", file, "-m", MODEL)
    before = file.read_bytes()
    assert run(*(str(file) if w == "FILE" else w for w in words)).exit_code == 2
    assert file.read_bytes() == before


def test_compare_writes_one_labelled_sheet(run, tmp_path, edit, tiller):
    sheet = tmp_path / "sheet.png"
    asked = ("-m", MODEL, "-n", 3, "--seed", 5, "-o", sheet)
    made = run(PROMPT, "--compare", f"{edit}@live", "--compare", f"{edit}@1", *asked)
    assert made.exit_code == 0, made.output
    assert f"with {edit}@live = {edit}@1" in " ".join(made.output.split())
    without, live, first = cells_of(sheet.read_bytes(), strips=3, columns=3)
    ordinary = tiller.images.generate(PROMPT, model=MODEL, n=3, seed=5)
    assert without == [enlarged(p.png) for p in ordinary]
    assert live == first
    assert not set(live) & set(without)
    assert len(set(live)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
