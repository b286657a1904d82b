"""The library's own pipeline, one request at a time, is what the engine must draw."""

import functools
import threading

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)

from engines.diffusion import DiffusionEngine
from engines.request import LAST, Finished, ImageRequest
from models.clip_pipelines import SAMPLERS
from models.family import FAMILIES
from models.loading import load

ONE_LEVEL = 1.0 / 255
TOLERANCE = 2e-3 + ONE_LEVEL / 2
"""Widths differ, so do the last bits; and the engine hands out whole levels of 1/255."""


@pytest.fixture(scope="module")
def stock(tiny_sd_folder):
    return _quiet(StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None))


@pytest.fixture(scope="module")
def stock_xl(tiny_sdxl_folder):
    return _quiet(
        StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder, add_watermarker=False)
    )


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_stock(pipeline, hosted, request):
    pipeline.scheduler = hosted.family.scheduler(hosted, request.sampler)
    return pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        height=request.height,
        width=request.width,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
    ).images[0]


def drawn_together(hosted, requests, **settings):
    """All requests at once on one engine: their pictures, from 0 to 1."""
    engine, found, over = DiffusionEngine(hosted, **settings), {}, threading.Semaphore(0)

    def tell(index, event):
        if isinstance(event, LAST):
            found[index] = event
            over.release()

    try:
        for i, request in enumerate(requests):
            engine.submit(request, functools.partial(tell, i))
        assert all(over.acquire(timeout=60) for _ in requests)
    finally:
        engine.stop()
    assert all(isinstance(event, Finished) for event in found.values()), found
    return [found[i].image.astype(np.float64) / 255 for i in range(len(requests))]


def a_request(sampler, **changes):
    stated = {"id": "r", "prompt": "a red cat", "seed": 3, "steps": 6, "guidance": 5.0}
    return ImageRequest(sampler=sampler, **(stated | changes))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_a_picture_is_the_stock_pipelines(stock, tiny_sd, sampler, mode):
    request = a_request(sampler, negative_prompt="a blue dog")
    [ours] = drawn_together(tiny_sd, [request], mode=mode, slots=3)
    assert np.abs(ours - drawn_by_stock(stock, tiny_sd, request)).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("sampler", "negative"),
    [*((sampler, None) for sampler in SAMPLERS), ("euler", ""), ("euler", "a blue dog")],
)
def test_a_picture_of_sdxl_is_the_stock_pipelines(stock_xl, tiny_sdxl, sampler, negative):
    request = a_request(sampler, negative_prompt=negative)
    [ours] = drawn_together(tiny_sdxl, [request], slots=3)
    assert np.abs(ours - drawn_by_stock(stock_xl, tiny_sdxl, request)).max() <= TOLERANCE


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_too(stock, tiny_sd, guidance):
    request = a_request("ddim", guidance=guidance)
    [ours] = drawn_together(tiny_sd, [request], slots=2)
    assert np.abs(ours - drawn_by_stock(stock, tiny_sd, request)).max() <= TOLERANCE


def test_another_size_too(stock, tiny_sd):
    request = a_request("euler", height=32, width=16)
    [ours] = drawn_together(tiny_sd, [request], slots=2)
    assert ours.shape == (32, 16, 3)
    assert np.abs(ours - drawn_by_stock(stock, tiny_sd, request)).max() <= TOLERANCE


def test_velocity_prediction_too(tmp_path):
    folder = FAMILIES["stable_diffusion"].tiny(tmp_path / "sd2", prediction="v_prediction")
    hosted = load("sd2", folder)
    pipeline = _quiet(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))
    for sampler in SAMPLERS:
        request = a_request(sampler)
        [ours] = drawn_together(hosted, [request], slots=2)
        assert np.abs(ours - drawn_by_stock(pipeline, hosted, request)).max() <= TOLERANCE


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_rows_that_differ_in_everything_are_each_the_stock_pipelines(stock, tiny_sd, mode):
    words = ("a red cat", "a blue house", "the president of arda", "a photo of a dog")
    requests = [
        a_request(
            (None, *SAMPLERS)[i % 6],
            prompt=words[i % 4],
            negative_prompt=(None, "a tree", "a man")[i % 3],
            seed=i,
            steps=3 + i,
            guidance=(7.5, 1.0, 3.0)[i % 3],
            height=(16, 32)[i % 5 == 4],
            width=16,
        )
        for i in range(9)
    ]
    drawn = drawn_together(tiny_sd, requests, mode=mode, slots=4)
    for ours, request in zip(drawn, requests, strict=True):
        assert np.abs(ours - drawn_by_stock(stock, tiny_sd, request)).max() <= TOLERANCE


def test_the_tolerance_would_notice_another_prompt(stock, tiny_sd):
    request = a_request("ddim")
    [other] = drawn_together(tiny_sd, [a_request("ddim", prompt="a blue house")], slots=2)
    assert np.abs(other - drawn_by_stock(stock, tiny_sd, request)).max() > 10 * TOLERANCE
