"""As test_pipeline, for the pipelines that a language model reads for."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

from engines.request import ImageRequest
from models.family import FAMILIES
from models.loading import load

PROMPTS = (
    "a red cat",
    "Photo of the king of Arda, in a blue house",
    "the dog",
    "a tree {of} Borea",
)
LEVEL = 1.0 / 255


@dataclass(frozen=True)
class Case:
    """A family, its smallest side, and what its pictures may lose to bfloat16 on the way."""

    kind: str
    pipeline: Any
    side: int
    padding: float = 0.0
    """In bfloat16, of a text that is read at another length than the stock pipeline reads it."""


CASES = {
    "sana": Case("sana", SanaPipeline, 32),
    # The stock pipeline reads a text at its own length, we at 512 with a mask: the same sums, put
    # together in another order. At its own length a picture is held to the common tolerance.
    "qwen_image": Case("qwen_image", QwenImagePipeline, 16, padding=5 * LEVEL),
}


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def hosted(case, tmp_path_factory):
    hosted = load("tiny", FAMILIES[case.kind].tiny(tmp_path_factory.mktemp(case.kind)))
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def stock(case, hosted):
    return case.pipeline.from_pretrained(hosted.path, dtype=torch.float32)


def call_of(case, request):
    """A request as its stock pipeline's call takes it, and what else that call takes."""
    if case.kind == "sana":
        return request, {"use_resolution_binning": False}
    # What "none given" means is ours to say: the stock pipeline would not guide at all.
    negative = " " if request.negative_prompt is None else request.negative_prompt
    stated = dataclasses.replace(
        request, negative_prompt=negative if request.guidance > 1 else None
    )
    return stated, {"true_cfg_scale": request.guidance}


@pytest.fixture(scope="module")
def distance(drawn_together, drawn_by_stock, case):
    """How far the engine's pictures are from the stock pipeline's, one request at a time."""

    def furthest(stock, hosted, requests, *, wanted=None, **settings):
        drawn, found = drawn_together(hosted, requests, **settings), []
        for ours, request in zip(drawn, wanted or requests, strict=True):
            stated, others = call_of(case, request)
            theirs = drawn_by_stock(stock, hosted, stated, **others)
            assert ours.shape == theirs.shape
            found.append(float(np.abs(ours - theirs).max()))
        return max(found)

    return furthest


def a_request(case, **changes):
    stated = {"id": "r", "prompt": "a red cat", "seed": 3, "steps": 4, "guidance": 4.0}
    return ImageRequest(**(stated | {"height": case.side, "width": case.side} | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompt": "a blue dog in a house, and a tree"},
        {"negative_prompt": ""},
        {"guidance": 1.0},
        {"guidance": 0.0, "negative_prompt": "a tree"},
        {"sampler": "flow_euler", "steps": 6},
        {"prompt": "", "sampler": "flow_euler"},
        {"prompt": PROMPTS[1], "seed": 2**40, "steps": 2},
    ],
)
def test_a_picture_is_the_stock_pipelines(distance, tolerance, case, hosted, stock, changes):
    request = a_request(case, **changes)
    assert distance(stock, hosted, [request], slots=2) <= tolerance


def test_another_size_too(distance, tolerance, case, hosted, stock):
    request = a_request(case, height=2 * case.side, width=3 * case.side)
    assert distance(stock, hosted, [request], slots=2) <= tolerance


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_rows_that_differ_in_everything_are_each_the_stock_pipelines(
    distance, tolerance, case, hosted, stock, mode
):
    samplers = (None, *hosted.family.samplers)
    requests = [
        a_request(
            case,
            sampler=samplers[i % len(samplers)],
            prompt=PROMPTS[i % 4],
            negative_prompt=(None, "a tree", "a green woman and a man")[i % 3],
            seed=i,
            steps=3 + i % 3,
            guidance=(7.5, 1.0, 3.0)[i % 3],
            height=(1, 2)[i % 5 == 4] * case.side,
        )
        for i in range(7)
    ]
    assert distance(stock, hosted, requests, mode=mode, slots=4) <= tolerance


@pytest.fixture(scope="module")
def brain(case, hosted):
    """The same model in bfloat16, with its stock pipeline."""
    brain = load("brain", hosted.path, dtype="bfloat16")
    yield brain, case.pipeline.from_pretrained(hosted.path, dtype=torch.bfloat16)
    brain.close()


@pytest.mark.parametrize("sampler", [None, "flow_euler"])
@pytest.mark.parametrize("guidance", [1.0, 3.3, 4.0])
def test_in_bfloat16_too(distance, tolerance, case, brain, sampler, guidance):
    hosted, stock = brain
    requests = [a_request(case, sampler=sampler, guidance=guidance, seed=i) for i in range(3)]
    assert distance(stock, hosted, requests, slots=1) <= tolerance + case.padding


def test_in_bfloat16_at_its_own_length_qwen_loses_nothing(
    distance, tolerance, case, brain, monkeypatch
):
    """What the family's wider tolerance is for is padding, and nothing else."""
    if not case.padding:
        pytest.skip("it reads every text at the stock pipeline's length")
    hosted, stock = brain
    text = a_request(case).prompt
    own = hosted.family.token_count(hosted, text)
    monkeypatch.setattr(hosted, "defaults", {"text_tokens": own})
    requests = [
        a_request(case, negative_prompt="a red dog", seed=i, guidance=3.3) for i in range(3)
    ]
    assert hosted.family.token_count(hosted, "a red dog") == own
    assert distance(stock, hosted, requests, slots=1) <= tolerance


def test_a_picture_is_the_same_to_the_bit_alone_and_beside_a_longer_prompt(
    drawn_together, case, hosted
):
    request = a_request(case)
    long = a_request(case, prompt=PROMPTS[1] * 3, negative_prompt=PROMPTS[1], seed=9)
    [alone] = drawn_together(hosted, [request], slots=2)
    [beside, _] = drawn_together(hosted, [request, long], slots=2)
    assert np.array_equal(alone, beside)


def test_the_tolerance_would_notice_another_prompt(distance, tolerance, case, hosted, stock):
    other = a_request(case, prompt="a blue house")
    assert distance(stock, hosted, [other], wanted=[a_request(case)], slots=2) > 10 * tolerance
