"""The engine beside the library's own pipelines: shared by every file of oracles."""

import functools
import threading

import numpy as np
import pytest
import torch

from engines.diffusion import DiffusionEngine
from engines.request import LAST, Finished

ONE_LEVEL = 1.0 / 255


@pytest.fixture(scope="session")
def tolerance() -> float:
    """Widths differ, so do the last bits; and the engine hands out whole levels of 1/255."""
    return 2e-3 + ONE_LEVEL / 2


@pytest.fixture(scope="session")
def drawn_by_stock():
    """The picture of one request by a library's pipeline, from 0 to 1."""
    return _drawn_by_stock


@pytest.fixture(scope="session")
def denoising_in():
    """A library's pipeline whose UNet alone computes in another dtype; it has no such switch."""
    return _denoising_in


@pytest.fixture(scope="session")
def drawn_together():
    """The pictures of many requests, all at once on one engine, from 0 to 1."""
    return _drawn_together


@pytest.fixture(scope="session")
def furthest():
    """The largest difference of a pixel between the engine's pictures and the pipeline's."""
    return _furthest


def _denoising_in(pipeline, dtype):
    def there(_unet, args, told):
        added = told.get("added_cond_kwargs") or {}
        cast = {"encoder_hidden_states": told["encoder_hidden_states"].to(dtype)}
        if added:
            vectors = added["text_embeds"].to(dtype)
            cast["added_cond_kwargs"] = {**added, "text_embeds": vectors}
        return (args[0].to(dtype), *args[1:]), {**told, **cast}

    pipeline.unet.to(dtype).register_forward_pre_hook(there, with_kwargs=True)
    pipeline.unet.register_forward_hook(lambda _unet, _args, said: (said[0].float(),))
    return pipeline


def _furthest(pipeline, hosted, requests, *, stock=None, **settings):
    """`settings` are the engine's, `stock` what only this pipeline's call takes."""
    drawn = _drawn_together(hosted, requests, **settings)
    wanted = [_drawn_by_stock(pipeline, hosted, request, **(stock or {})) for request in requests]
    assert [ours.shape for ours in drawn] == [theirs.shape for theirs in wanted]
    return max(np.abs(o - t).max() for o, t in zip(drawn, wanted, strict=True))


def _drawn_by_stock(pipeline, hosted, request, **others):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = hosted.family.scheduler(hosted, request.sampler)
    if request.negative_prompt is not None:  # some pipelines know no None
        others["negative_prompt"] = request.negative_prompt
    return pipeline(
        prompt=request.prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        height=request.height,
        width=request.width,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
        **others,
    ).images[0]


def _drawn_together(hosted, requests, **settings):
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
