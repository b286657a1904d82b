"""The stock pipelines that T5 reads for, one request at a time, are what the engine must draw."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from diffusers import FluxPipeline, IFPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline

from engines.request import ImageRequest
from models.family import FAMILIES
from models.loading import load


@dataclass(frozen=True)
class Case:
    """A family, a way to make its toy, and how its stock pipeline is called."""

    kind: str
    pipeline: Any
    toy: dict[str, Any] = field(default_factory=dict)
    stock: dict[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] = (7.0, 1.0, 3.0)
    negatives: tuple[str | None, ...] = (None, "a tree", "a man")


CASES = {
    "sd3": Case("stable_diffusion_3", StableDiffusion3Pipeline),
    "sd3.5, shifted": Case("stable_diffusion_3", StableDiffusion3Pipeline, toy={"shifts": True}),
    "flux dev": Case("flux", FluxPipeline, scales=(3.5, 1.0, 7.0), negatives=(None,)),
    "flux schnell": Case(
        "flux",
        FluxPipeline,
        toy={"schnell": True},
        stock={"max_sequence_length": 256},
        scales=(0.0, 3.5),
        negatives=(None,),
    ),
    "pixart": Case(
        "pixart_sigma",
        PixArtSigmaPipeline,
        stock={"clean_caption": False, "use_resolution_binning": False},
    ),
    "if": Case("deepfloyd_if", IFPipeline, stock={"clean_caption": False}),
    "if, fixed variance": Case(
        "deepfloyd_if", IFPipeline, toy={"learned": False}, stock={"clean_caption": False}
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def hosted(case, tmp_path_factory):
    folder = FAMILIES[case.kind].tiny(tmp_path_factory.mktemp(case.kind) / "toy", **case.toy)
    hosted = load("tiny", folder)
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def stock(case, hosted):
    return case.pipeline.from_pretrained(hosted.path, **hosted.family.left_out())


@pytest.fixture(scope="module")
def distance(furthest, case, stock, hosted):
    """How far the engine's pictures are from the stock pipeline's."""
    return functools.partial(furthest, stock, hosted, stock=case.stock)


def a_request(case, i=0, **changes):
    words = ("a Red cat ", "a blue house", "the president of arda", "a photo of a dog")
    stated: dict[str, Any] = {
        "id": f"r{i}",
        "prompt": words[i % 4],
        "negative_prompt": case.negatives[(i + 1) % len(case.negatives)],
        "seed": 3 + i,
        "steps": 3 + i % 3,
        "guidance": case.scales[i % len(case.scales)],
        "height": (16, 24)[i % 3 == 2],
        "width": 16,
    }
    return ImageRequest(**(stated | changes))


def test_a_picture_of_every_sampler_is_the_stock_pipelines(distance, tolerance, case, hosted):
    requests = [a_request(case, sampler=sampler) for sampler in (None, *hosted.family.samplers)]
    assert distance(requests, slots=len(requests)) <= tolerance


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance_and_at_another_size_too(distance, tolerance, case, guidance):
    request = a_request(case, guidance=guidance, height=16, width=24, negative_prompt=None)
    assert distance([request], slots=1) <= tolerance


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_rows_that_differ_in_everything_are_each_the_stock_pipelines(
    distance, tolerance, case, hosted, mode
):
    samplers = (None, *hosted.family.samplers)
    requests = [a_request(case, i, sampler=samplers[i % len(samplers)]) for i in range(7)]
    assert distance(requests, slots=4, mode=mode) <= tolerance


def test_in_bfloat16_too(furthest, tolerance, case, hosted):
    brain = load("brain", hosted.path, dtype="bfloat16")
    stock = case.pipeline.from_pretrained(hosted.path, dtype=brain.dtype, **brain.family.left_out())
    assert furthest(stock, brain, [a_request(case)], stock=case.stock, slots=1) <= tolerance
    brain.close()


def test_the_tolerance_would_notice_another_prompt_scale_or_negative(
    drawn_together, drawn_by_stock, tolerance, case, stock, hosted
):
    request = a_request(case)
    others = [a_request(case, prompt="a blue house")]
    if case.toy != {"schnell": True}:
        others.append(a_request(case, guidance=request.guidance + 2))
    if len(case.negatives) > 1:
        others.append(a_request(case, negative_prompt="the king of borea"))
    theirs = drawn_by_stock(stock, hosted, request, **case.stock)
    for other in drawn_together(hosted, others, slots=4):
        assert np.abs(other - theirs).max() > 5 * tolerance
