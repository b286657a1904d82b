"""Which host a configured model gets, and which keys of its settings mean something there."""

import asyncio
import contextlib

import pytest

from models.errors import Refusal
from service.errors import BadSettings
from service.hosts import host_of
from service.recipe import Recipe
from service.registry import open_registry
from service.settings import Model, Settings
from service.workbench import Drawn, ImageOrder


@pytest.mark.parametrize(
    ("folder", "key", "value"),
    [
        ("tiny_lm_folder", "steps", 3),
        ("tiny_lm_folder", "mode", "fast"),
        ("tiny_lm_folder", "denoiser_dtype", "auto"),
        ("tiny_sd_folder", "saes", ({"id": "toy", "path": "/nowhere"},)),
        ("tiny_sd_folder", "capacity", 64),
    ],
)
def test_a_key_for_the_other_kind_of_model_is_refused(request, tmp_path, folder, key, value):
    model = Model(name="one", path=str(request.getfixturevalue(folder)), **{key: value})
    settings = Settings(home=tmp_path, models=(model,))
    registry = open_registry(settings.index_url, settings.blobs_url)
    with pytest.raises(BadSettings) as refused:
        host_of(model, settings, registry)
    registry.close()
    assert f"models.one.{key}" in refused.value.problem


def test_a_dictionary_of_another_model_is_refused_when_the_model_is_loaded(
    tmp_path, tiny_lm_folder, tiny_sae_folder
):
    wrong = ({"id": "toy", "path": str(tiny_sae_folder), "site": "lm.block.99"},)
    model = Model(name="one", path=str(tiny_lm_folder), saes=wrong)
    settings = Settings(home=tmp_path, models=(model,))
    registry = open_registry(settings.index_url, settings.blobs_url)
    with pytest.raises(Refusal) as refused:
        host_of(model, settings, registry)
    registry.close()
    assert "lm.block.99" in refused.value.problem


async def first(pictures):
    async with contextlib.aclosing(pictures):
        return await anext(told async for told in pictures if isinstance(told, Drawn))


def test_a_denoiser_of_another_dtype_is_said_by_card_answer_and_picture(tmp_path, tiny_sd_folder):
    model = Model(name="one", path=str(tiny_sd_folder), slots=1, denoiser_dtype="bfloat16")
    settings = Settings(home=tmp_path, models=(model,))
    registry = open_registry(settings.index_url, settings.blobs_url)
    host = host_of(model, settings, registry)
    try:
        card = asyncio.run(host.card())
        drawn = asyncio.run(first(host.draw(ImageOrder(id="r", prompt="a red cat", seeds=(3,)))))
        recipe = Recipe.read(drawn.png)
    finally:
        host.close(10.0)
        registry.close()
    assert (card["dtype"], card["denoiser_dtype"]) == ("float32", "bfloat16")
    assert drawn.facts["denoiser_dtype"] == recipe.denoiser_dtype == "bfloat16"
    assert recipe.differences({**card, "tiller": {"version": recipe.version}}) == ()
