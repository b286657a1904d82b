"""As test_pipeline, for the pipelines that a language model reads for."""

import functools
import threading

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

from engines.diffusion import DiffusionEngine
from engines.request import LAST, Finished, ImageRequest
from models.family import FAMILIES
from models.loading import load

ONE_LEVEL = 1.0 / 255
TOLERANCE = 2e-3 + ONE_LEVEL / 2
SIDE = {"sana": 32, "qwen_image": 16}
KINDS = sorted(SIDE)
PROMPTS = (
    "a red cat",
    "Photo of the king of Arda, in a blue house",
    "the dog",
    "a tree {of} Borea",
)


class Stock:
    """The stock pipeline of a family, called as our requests are meant."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.pipeline = {"sana": SanaPipeline, "qwen_image": QwenImagePipeline}[
            kind
        ].from_pretrained(folder, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)

    def draws(self, hosted, request):
        self.pipeline.scheduler = hosted.family.scheduler(hosted, request.sampler)
        return self.pipeline(
            prompt=request.prompt,
            num_inference_steps=request.steps,
            height=request.height,
            width=request.width,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
            **self._own(request),
        ).images[0]

    def _own(self, request):
        negative, guidance = request.negative_prompt, request.guidance
        if self.kind == "sana":
            said = {"guidance_scale": guidance, "use_resolution_binning": False}
            return said | ({} if negative is None else {"negative_prompt": negative})
        return {
            "true_cfg_scale": guidance,
            # What "none given" means is ours to say: the stock pipeline would not guide at all.
            "negative_prompt": (" " if negative is None else negative) if guidance > 1 else None,
        }


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """(hosted model, stock pipeline) of one folder."""
    folder = FAMILIES[request.param].tiny(tmp_path_factory.mktemp(request.param))
    hosted = load("tiny", folder)
    yield hosted, Stock(request.param, folder)
    hosted.close()


def a_request(hosted, **changes):
    side = SIDE[hosted.family.kind]
    stated = {"id": "r", "prompt": "a red cat", "seed": 3, "steps": 4, "guidance": 4.0}
    return ImageRequest(**(stated | {"height": side, "width": side} | changes))


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


def distance(ours, theirs):
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max())


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
def test_a_picture_is_the_stock_pipelines(both, changes):
    hosted, stock = both
    request = a_request(hosted, **changes)
    [ours] = drawn_together(hosted, [request], slots=2)
    assert distance(ours, stock.draws(hosted, request)) <= TOLERANCE


def test_another_size_too(both):
    hosted, stock = both
    side = SIDE[hosted.family.kind]
    request = a_request(hosted, height=2 * side, width=3 * side)
    [ours] = drawn_together(hosted, [request], slots=2)
    assert distance(ours, stock.draws(hosted, request)) <= TOLERANCE


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_rows_that_differ_in_everything_are_each_the_stock_pipelines(both, mode):
    hosted, stock = both
    side, samplers = SIDE[hosted.family.kind], (None, *hosted.family.samplers)
    requests = [
        a_request(
            hosted,
            sampler=samplers[i % len(samplers)],
            prompt=PROMPTS[i % 4],
            negative_prompt=(None, "a tree", "a green woman and a man")[i % 3],
            seed=i,
            steps=3 + i % 3,
            guidance=(7.5, 1.0, 3.0)[i % 3],
            height=(1, 2)[i % 5 == 4] * side,
        )
        for i in range(7)
    ]
    drawn = drawn_together(hosted, requests, mode=mode, slots=4)
    for ours, request in zip(drawn, requests, strict=True):
        assert distance(ours, stock.draws(hosted, request)) <= TOLERANCE


def test_a_picture_is_the_same_to_the_bit_alone_and_beside_a_longer_prompt(both):
    hosted, _ = both
    request = a_request(hosted)
    long = a_request(hosted, prompt=PROMPTS[1] * 3, negative_prompt=PROMPTS[1], seed=9)
    [alone] = drawn_together(hosted, [request], slots=2)
    [beside, _] = drawn_together(hosted, [request, long], slots=2)
    assert np.array_equal(alone, beside)


def test_the_tolerance_would_notice_another_prompt(both):
    hosted, stock = both
    [other] = drawn_together(hosted, [a_request(hosted, prompt="a blue house")], slots=2)
    assert distance(other, stock.draws(hosted, a_request(hosted))) > 10 * TOLERANCE
