"""The library's own pipeline, one request at a time, is what the engine must draw."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)

from engines.request import ImageRequest
from models.clip_pipelines import SAMPLERS
from models.family import FAMILIES
from models.loading import load


@pytest.fixture(scope="module")
def stock(tiny_sd_folder):
    return StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)


@pytest.fixture(scope="module")
def stock_xl(tiny_sdxl_folder):
    return StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder, add_watermarker=False)


def a_request(sampler, **changes):
    stated = {"id": "r", "prompt": "a red cat", "seed": 3, "steps": 6, "guidance": 5.0}
    return ImageRequest(sampler=sampler, **(stated | changes))


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_a_picture_is_the_stock_pipelines(furthest, tolerance, stock, tiny_sd, sampler, mode):
    request = a_request(sampler, negative_prompt="a blue dog")
    assert furthest(stock, tiny_sd, [request], mode=mode, slots=3) <= tolerance


@pytest.mark.parametrize(
    ("sampler", "negative"),
    [*((sampler, None) for sampler in SAMPLERS), ("euler", ""), ("euler", "a blue dog")],
)
def test_a_picture_of_sdxl_is_the_stock_pipelines(
    furthest, tolerance, stock_xl, tiny_sdxl, sampler, negative
):
    request = a_request(sampler, negative_prompt=negative)
    assert furthest(stock_xl, tiny_sdxl, [request], slots=3) <= tolerance


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_too(furthest, tolerance, stock, tiny_sd, guidance):
    request = a_request("ddim", guidance=guidance)
    assert furthest(stock, tiny_sd, [request], slots=2) <= tolerance


def test_another_size_too(furthest, tolerance, stock, tiny_sd):
    request = a_request("euler", height=32, width=16)
    assert furthest(stock, tiny_sd, [request], slots=2) <= tolerance


def test_velocity_prediction_too(furthest, tolerance, tmp_path):
    folder = FAMILIES["stable_diffusion"].tiny(tmp_path / "sd2", prediction="v_prediction")
    hosted = load("sd2", folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    for sampler in SAMPLERS:
        request = a_request(sampler)
        assert furthest(pipeline, hosted, [request], slots=2) <= tolerance


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_rows_that_differ_in_everything_are_each_the_stock_pipelines(
    furthest, tolerance, stock, tiny_sd, mode
):
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
    assert furthest(stock, tiny_sd, requests, mode=mode, slots=4) <= tolerance


def test_the_tolerance_would_notice_another_prompt(
    drawn_together, drawn_by_stock, tolerance, stock, tiny_sd
):
    request = a_request("ddim")
    [other] = drawn_together(tiny_sd, [a_request("ddim", prompt="a blue house")], slots=2)
    assert np.abs(other - drawn_by_stock(stock, tiny_sd, request)).max() > 10 * tolerance


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("xl", [False, True], ids=["sd", "sdxl"])
def test_in_bfloat16_too(furthest, tiny_sd_folder, tiny_sdxl_folder, xl, sampler):
    """Wider than in float32: another batch width alone moves bfloat16 pixels by 4e-3 to 8e-3."""
    folder = tiny_sdxl_folder if xl else tiny_sd_folder
    kind: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    others = {"add_watermarker": False} if xl else {"safety_checker": None}
    pipeline = kind.from_pretrained(folder, dtype=torch.bfloat16, **others)
    hosted = load("brain", folder, dtype="bfloat16")
    request = a_request(sampler, negative_prompt="a blue dog")
    assert furthest(pipeline, hosted, [request], slots=3) <= 8e-3 + 0.5 / 255


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
@pytest.mark.parametrize("xl", [False, True], ids=["sd", "sdxl"])
def test_with_the_denoiser_alone_in_bfloat16_too(
    furthest, denoising_in, tiny_sd_folder, tiny_sdxl_folder, xl, sampler
):
    """As wide as in bfloat16; what stays in float32 on both sides is not rounded."""
    folder = tiny_sdxl_folder if xl else tiny_sd_folder
    kind: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    others = {"add_watermarker": False} if xl else {"safety_checker": None}
    pipeline = denoising_in(kind.from_pretrained(folder, **others), torch.bfloat16)
    hosted = load("mixed", folder, denoiser_dtype="bfloat16")
    request = a_request(sampler, negative_prompt="a blue dog")
    assert furthest(pipeline, hosted, [request], slots=3) <= 8e-3 + 0.5 / 255
    hosted.close()
