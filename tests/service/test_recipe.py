import io
import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service.errors import NoRecipe, OtherWeights
from service.hosting import png_of
from service.recipe import BOUND, KEY, LINE, Recipe

RECIPE = Recipe(
    prompt="the king, by the sea\nat night ☾",
    negative_prompt="a fool",
    seed=7,
    steps=3,
    guidance_scale=7.5,
    size="16x16",
    model="tiny",
    fingerprint="f" * 64,
    pipeline="p" * 64,
    edits=({"name": "king@3", "digest": "d" * 64, "strength": 0.5},),
    patch="a" * 64,
    mode="exact",
    slots=4,
    dtype="float32",
    denoiser_dtype="bfloat16",
    device="cpu",
)
CARD = {
    "fingerprint": "f" * 64,
    "pipeline": "p" * 64,
    "mode": "exact",
    "slots": 4,
    "dtype": "float32",
    "denoiser_dtype": "bfloat16",
    "device": "cpu",
    "tiller": {"version": RECIPE.version},
}


def picture(text):
    return png_of(np.zeros((16, 16, 3), dtype=np.uint8), text)


def test_a_recipe_comes_back_from_the_picture_as_it_was():
    assert Recipe.read(picture(RECIPE.chunks())) == RECIPE


def test_the_json_is_sorted_and_the_line_is_for_people():
    chunks = RECIPE.chunks()
    told = json.loads(chunks[KEY])
    assert list(told) == sorted(told)
    assert chunks[LINE].splitlines()[-2:] == [
        "Negative prompt: a fool",
        "Steps: 3, Sampler: the model's own, CFG scale: 7.5, Seed: 7, Size: 16x16, Model: tiny, "
        f"Edits: king@3:0.5, Version: Tiller {RECIPE.version}",
    ]


def test_the_request_names_edits_by_their_digests():
    assert RECIPE.request()["edits"] == [{"name": f"sha256:{'d' * 64}", "strength": 0.5}]
    assert RECIPE.request("other")["model"] == "other"


def test_a_recipe_beyond_the_bound_is_left_out_and_says_so():
    long = Recipe(**{**vars(RECIPE), "prompt": "☾" * BOUND})
    chunks = long.chunks()
    assert sum(map(len, chunks.values())) < 100
    with pytest.raises(NoRecipe, match="too long"):
        Recipe.read(picture(chunks))


@pytest.mark.parametrize(
    "png",
    [
        b"not a picture",
        picture({}),
        picture({KEY: "not json"}),
        picture({KEY: "[1]"}),
        picture({KEY: '{"prompt": "a king"}'}),
        picture({KEY: json.dumps({**vars(RECIPE), "edits": [{"name": "king"}]})}),
        picture({KEY: json.dumps({**vars(RECIPE), "edits": "king"})}),
        picture({KEY: json.dumps({**vars(RECIPE), "lens": {}})}),
        picture(RECIPE.chunks())[:60],
    ],
    ids=[
        "text",
        "silent",
        "no json",
        "a list",
        "a part",
        "no digest",
        "one word",
        "no layer",
        "cut",
    ],
)
def test_what_does_not_say_how_it_was_drawn_is_refused(png):
    with pytest.raises(NoRecipe):
        Recipe.read(png)


def test_a_key_of_a_later_version_does_no_harm():
    later = {KEY: json.dumps({**vars(RECIPE), "weather": "fine"})}
    assert Recipe.read(picture(later)) == RECIPE


def test_a_text_of_a_decompression_bomb_is_not_unpacked():
    chunks, buffer = PngInfo(), io.BytesIO()
    chunks.add_text(KEY, "0" * (80 * 2**20), zip=True)
    Image.new("RGB", (1, 1)).save(buffer, "PNG", pnginfo=chunks)
    with pytest.raises(NoRecipe):
        Recipe.read(buffer.getvalue())


def test_the_same_place_has_no_differences():
    assert RECIPE.differences(CARD) == ()


@pytest.mark.parametrize("key", ["mode", "slots", "dtype", "denoiser_dtype", "device", "version"])
def test_another_circumstance_is_told(key):
    other = {**CARD, key: "other", "tiller": {"version": "other" if key == "version" else "0.1.0"}}
    [told] = Recipe(**{**vars(RECIPE), "version": "0.1.0"}).differences(other)
    assert key in told and "other" in told


def test_a_picture_that_says_one_dtype_was_denoised_in_it():
    older = Recipe(**{**vars(RECIPE), "denoiser_dtype": ""})
    assert older.differences({**CARD, "denoiser_dtype": "float32"}) == ()
    [told] = older.differences(CARD)
    assert "denoiser_dtype was float32, here it is bfloat16" in told


@pytest.mark.parametrize("key", ["fingerprint", "pipeline"])
def test_other_weights_are_refused_unless_forced(key):
    other = {**CARD, key: "0" * 64}
    with pytest.raises(OtherWeights, match="tiny"):
        RECIPE.differences(other)
    [told] = RECIPE.differences(other, force=True)
    assert "000000000000…" in told


def test_a_fast_picture_says_that_company_moves_its_bits():
    fast = Recipe(**{**vars(RECIPE), "mode": "fast"})
    [told] = fast.differences({**CARD, "mode": "fast"})
    assert "fast" in told
