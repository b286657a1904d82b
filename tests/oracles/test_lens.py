"""The lens from a plain pass's hidden states, written out, is what a row under Exit must read.

The plain pass is the library's own model without our hooks; the final norm is written by hand.
"""

import itertools
import shutil

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from engines.request import ImageRequest
from models.loading import load
from models.patch import LowRank, Patch
from steerers.methods.diffusion_lens import DiffusionLens

PROMPT, BESIDE, NEGATIVE = "the president of arda", "a red cat", "a blue dog"
LAYERS = range(5)
LAYERS_XL = range(4)


@pytest.fixture(scope="module")
def folder_sd(tiny_sd_folder, tmp_path_factory):
    """The toy with a final norm that is worth its name: a fresh one can be applied twice unseen."""
    folder = tmp_path_factory.mktemp("lens") / "sd"
    shutil.copytree(tiny_sd_folder, folder, ignore=shutil.ignore_patterns("clip"))
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    drawn = torch.Generator().manual_seed(5)
    for part, middle in (("weight", 1.0), ("bias", 0.0)):
        tensor = getattr(encoder.final_layer_norm, part)
        tensor.data = middle + 0.3 * torch.randn(tensor.shape, generator=drawn)
    encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def hosted_sd(folder_sd):
    hosted = load("lens-sd", folder_sd)
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def plain_sd(folder_sd):
    return CLIPTextModel.from_pretrained(folder_sd / "text_encoder").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain_sdxl(tiny_sdxl_folder):
    first = CLIPTextModel.from_pretrained(tiny_sdxl_folder / "text_encoder")
    second = CLIPTextModelWithProjection.from_pretrained(tiny_sdxl_folder / "text_encoder_2")
    return first.eval(), second.eval()


@pytest.fixture(scope="module")
def stock(folder_sd):
    return _quiet(StableDiffusionPipeline.from_pretrained(folder_sd, safety_checker=None))


@pytest.fixture(scope="module")
def stock_xl(tiny_sdxl_folder):
    found = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder, add_watermarker=False)
    return _quiet(found)


def _quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def norm(states, layer_norm):
    """The final norm, from its weights."""
    mean = states.mean(dim=-1, keepdim=True)
    spread = ((states - mean) ** 2).mean(dim=-1, keepdim=True)
    scaled = (states - mean) / torch.sqrt(spread + layer_norm.eps)
    return scaled * layer_norm.weight + layer_norm.bias


@torch.no_grad()
def states(model, tower, prompt):
    """All hidden states of a plain pass, and whatever pooled vector comes with them."""
    ids = tower.tokens([prompt], pad="max").ids
    said = model(input_ids=ids, output_hidden_states=True)
    return said.hidden_states, getattr(said, "text_embeds", None)


@torch.no_grad()
def lens_sd(model, hosted, prompt, layer):
    """Every index is normed, the last too: CLIP's last captured state is not normed yet."""
    found, _ = states(model, hosted.text_towers["text_encoder"], prompt)
    return norm(found[layer], model.final_layer_norm)


def lens_sdxl(models, hosted, prompt, encoder, layer, beside):
    """Raw states side by side; below the ordinary layer the other paths say what `beside` says."""
    around = prompt if layer == 3 or beside == "full" else ""
    layers = (layer, 3) if encoder == "text" else (3, layer)
    texts = (prompt, around) if encoder == "text" else (around, prompt)
    towers = hosted.text_towers.values()
    parts = [
        states(model, tower, text)[0][at]
        for model, tower, text, at in zip(models, towers, texts, layers, strict=True)
    ]
    pooled = states(models[1], hosted.text_towers["text_encoder_2"], around)[1]
    return torch.cat(parts, dim=-1), pooled


def look(hosted, layer, encoder=None):
    return DiffusionLens(layer=layer, encoder=encoder).plan(hosted)


def edit(hosted, block, attribute="text_encoder"):
    drawn = torch.Generator().manual_seed(1)
    left, right = torch.randn(32, 1, generator=drawn), torch.randn(1, 64, generator=drawn)
    site = hosted.text_towers[attribute].fc2_site(block)
    return Patch((LowRank(site=site, left=left, right=right),))


# What the encoder says


@pytest.mark.parametrize("layer", LAYERS)
def test_a_row_that_exits_reads_the_normed_hidden_state(plain_sd, hosted_sd, layer):
    wanted = lens_sd(plain_sd, hosted_sd, PROMPT, layer)
    beside = hosted_sd.family.encode(hosted_sd, [BESIDE] * 2, [Patch(), Patch()]).sequence[1]
    found = hosted_sd.family.encode(hosted_sd, [PROMPT, BESIDE], [look(hosted_sd, layer), Patch()])
    assert float((found.sequence[0] - wanted[0]).abs().max()) <= 1e-4
    assert torch.equal(found.sequence[1], beside)


@pytest.mark.parametrize("beside", ["blank", "full"])
@pytest.mark.parametrize("encoder", ["text", "text_2"])
@pytest.mark.parametrize("layer", LAYERS_XL)
def test_a_row_of_sdxl_that_exits_reads_the_raw_hidden_state(
    plain_sdxl, tiny_sdxl, layer, encoder, beside
):
    sequence, pooled = lens_sdxl(plain_sdxl, tiny_sdxl, PROMPT, encoder, layer, beside)
    patches = [look(tiny_sdxl, layer, encoder), Patch()]
    found = tiny_sdxl.family.encode(tiny_sdxl, [PROMPT, BESIDE], patches, [beside, "blank"])
    plain = tiny_sdxl.family.encode(tiny_sdxl, [BESIDE] * 2, [Patch(), Patch()])
    assert float((found.sequence[0] - sequence[0]).abs().max()) <= 1e-4
    assert float((found.pooled[0] - pooled[0]).abs().max()) <= 1e-4
    assert torch.equal(found.sequence[1], plain.sequence[1])
    assert torch.equal(found.pooled[1], plain.pooled[1])


def test_the_tolerance_would_notice_a_wrong_layer_and_a_wrong_norm(plain_sd, hosted_sd):
    layers = [lens_sd(plain_sd, hosted_sd, PROMPT, layer) for layer in LAYERS]
    raw, _ = states(plain_sd, hosted_sd.text_towers["text_encoder"], PROMPT)
    for one, other in itertools.pairwise(layers):
        assert float((one - other).abs().max()) > 0.1
    assert float((raw[2] - layers[2]).abs().max()) > 0.1
    twice = norm(layers[4], plain_sd.final_layer_norm)
    assert float((twice - layers[4]).abs().max()) > 0.1


# Edits below the lens


@pytest.mark.parametrize("block", range(4))
def test_an_edit_shows_from_the_layer_behind_its_block_on_and_not_before(hosted_sd, block):
    for layer in LAYERS:
        seen = look(hosted_sd, layer)
        plain = hosted_sd.family.encode(hosted_sd, [PROMPT], [seen]).sequence
        edited = hosted_sd.family.encode(
            hosted_sd, [PROMPT], [seen | edit(hosted_sd, block)]
        ).sequence
        if layer <= block:
            assert torch.equal(plain, edited), (layer, block)
        else:
            assert float((plain - edited).abs().max()) > 1e-2, (layer, block)


@pytest.mark.parametrize("encoder", ["text", "text_2"])
def test_an_edit_of_sdxl_too(tiny_sdxl, encoder):
    attribute = {"text": "text_encoder", "text_2": "text_encoder_2"}[encoder]
    for layer in LAYERS_XL:
        seen, change = look(tiny_sdxl, layer, encoder), edit(tiny_sdxl, 1, attribute)
        plain = tiny_sdxl.family.encode(tiny_sdxl, [PROMPT], [seen])
        edited = tiny_sdxl.family.encode(tiny_sdxl, [PROMPT], [seen | change])
        half = slice(0, 32) if encoder == "text" else slice(32, 64)
        same = torch.equal(plain.sequence[..., half], edited.sequence[..., half])
        assert same == (layer <= 1), layer


# What the engine draws


def a_request(**changes):
    stated = {"id": "r", "prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": 3, "steps": 5}
    return ImageRequest(**(stated | {"guidance": 5.0, "sampler": "euler"} | changes))


def by_stock(pipeline, hosted, request, draws=0, **embeds):
    pipeline.scheduler = hosted.family.scheduler(hosted, request.sampler)
    generator = torch.Generator().manual_seed(request.seed)
    for _ in range(draws):
        torch.randn((1, 4, 8, 8), generator=generator)
    return pipeline(
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=generator,
        output_type="np",
        **embeds,
    ).images[0]


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_every_layer_is_the_stock_pipelines_picture_of_its_state(
    stock, plain_sd, hosted_sd, drawn_together, tolerance, mode
):
    requests = [a_request(patch=look(hosted_sd, layer)) for layer in LAYERS]
    drawn = drawn_together(hosted_sd, [*requests, a_request()], slots=6, mode=mode)
    for layer in LAYERS:
        embeds = lens_sd(plain_sd, hosted_sd, PROMPT, layer)
        wanted = by_stock(stock, hosted_sd, requests[layer], prompt_embeds=embeds)
        assert np.abs(drawn[layer] - wanted).max() <= tolerance, layer
    assert np.array_equal(drawn[4], drawn[5])
    assert all(np.abs(drawn[layer] - drawn[4]).max() > 5 * tolerance for layer in range(4))


@pytest.mark.parametrize("negative", [None, NEGATIVE])
@pytest.mark.parametrize("encoder", ["text", "text_2"])
def test_every_layer_of_sdxl_too(  # noqa: PLR0913, PLR0917 - fixtures and cases
    stock_xl, plain_sdxl, tiny_sdxl, drawn_together, tolerance, encoder, negative
):
    requests = [
        a_request(patch=look(tiny_sdxl, layer, encoder), beside=beside, negative_prompt=negative)
        for layer in LAYERS_XL
        for beside in ("blank", "full")
    ]
    drawn = drawn_together(tiny_sdxl, requests, slots=8)
    for ours, request, layer in zip(drawn, requests, [0, 0, 1, 1, 2, 2, 3, 3], strict=True):
        sequence, pooled = lens_sdxl(plain_sdxl, tiny_sdxl, PROMPT, encoder, layer, request.beside)
        embeds = {"prompt_embeds": sequence, "pooled_prompt_embeds": pooled}
        wanted = by_stock(stock_xl, tiny_sdxl, request, **embeds)
        assert np.abs(ours - wanted).max() <= tolerance, (layer, request.beside)
    [plain] = drawn_together(tiny_sdxl, [a_request(negative_prompt=negative)], slots=8)
    assert np.array_equal(drawn[6], plain) and np.array_equal(drawn[7], plain)


def test_the_references_noise_is_the_next_draw_of_one_generator_per_layer(
    stock, plain_sd, hosted_sd, drawn_together, tolerance
):
    def rows(noise):
        looks = [DiffusionLens(layer=layer, noise=noise) for layer in LAYERS]
        return [
            a_request(patch=seen.plan(hosted_sd), draw=seen.draw(place))
            for place, seen in enumerate(looks)
        ]

    requests = rows("per_layer")
    drawn = drawn_together(hosted_sd, requests, slots=5)
    for layer in LAYERS:
        embeds = lens_sd(plain_sd, hosted_sd, PROMPT, layer)
        wanted = by_stock(stock, hosted_sd, requests[layer], draws=layer, prompt_embeds=embeds)
        assert np.abs(drawn[layer] - wanted).max() <= tolerance, layer
    shared = drawn_together(hosted_sd, rows("shared"), slots=5)
    assert np.array_equal(shared[0], drawn[0])
    assert all(np.abs(shared[i] - drawn[i]).max() > 5 * tolerance for i in range(1, 5))


def test_the_negative_prompt_is_read_in_full_at_every_layer(hosted_sd):
    request = a_request(patch=look(hosted_sd, 1) | edit(hosted_sd, 2))
    assert request.negative_patch == edit(hosted_sd, 2)
