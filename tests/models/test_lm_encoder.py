"""What holds for every family whose prompts a language model reads."""

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

from models.errors import MethodNotApplicable, PromptTooLong, UnknownSite
from models.families.sana import instruction
from models.family import FAMILIES
from models.loading import load
from models.patch import Patch, Shift

KINDS = ("qwen_image", "sana")
PROMPTS = ("a red cat", "the king of arda in a blue house", "")


@pytest.fixture(scope="module", params=KINDS)
def hosted(request, tmp_path_factory):
    hosted = load("tiny", FAMILIES[request.param].tiny(tmp_path_factory.mktemp(request.param)))
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def stock(hosted):
    kind = {"qwen_image": QwenImagePipeline, "sana": SanaPipeline}[hosted.family.kind]
    return kind.from_pretrained(hosted.path, dtype=torch.float32)


def read_by_stock(stock, prompt):
    """(1, tokens, d) and the mask of one prompt by itself, by the pipeline's own encoding."""
    if isinstance(stock, SanaPipeline):
        said = stock.encode_prompt(
            prompt, False, complex_human_instruction=instruction().split("\n")
        )
        return said[:2]
    states, mask = stock.encode_prompt(prompt)
    return states, torch.ones(states.shape[:2]).long() if mask is None else mask


@torch.no_grad()
def every_layer(stock, prompt):
    """Final norm of what enters each block, and the last state; where the denoiser reads."""
    if isinstance(stock, SanaPipeline):
        ids = stock.tokenizer(instruction() + prompt, return_tensors="pt").input_ids
        stack, first = stock.text_encoder, len(stock.tokenizer(instruction()).input_ids) - 1
    else:
        ids = stock.tokenizer(
            stock.prompt_template_encode.format(prompt), return_tensors="pt"
        ).input_ids
        stack, first = stock.text_encoder.model.language_model, 34
    *states, last = stack(input_ids=ids, output_hidden_states=True).hidden_states
    # The library hands out its last state normed already: once is enough.
    return [state[0, first:] for state in (*map(stack.norm, states), last)]


def kept(hosted, conditioning, row):
    """What the denoiser reads of a row, without what stands in front of a prompt."""
    first = 1 if hosted.family.kind == "sana" else 0
    return conditioning.sequence[row, conditioning.mask[row].bool()][first:]


def test_every_prompt_is_read_as_the_stock_pipeline_reads_it_alone(hosted, stock):
    found = hosted.family.encode(hosted, PROMPTS, [Patch()] * 3)
    for row, prompt in enumerate(PROMPTS):
        states, mask = read_by_stock(stock, prompt)
        n = states.shape[1]
        assert torch.equal(found.mask[row, :n], mask[0])
        assert int(found.mask[row].sum()) == int(mask.sum())
        seen = mask[0].bool()
        torch.testing.assert_close(
            found.sequence[row, :n][seen], states[0][seen], atol=1e-4, rtol=1e-4
        )


def test_each_layer_is_the_final_norm_of_that_state_and_a_plain_row_stays_to_the_bit(hosted, stock):
    family = hosted.family
    lens = family.lens(hosted)
    layers = range(lens.ordinary + 1)
    prompts = [PROMPTS[layer % 2] for layer in layers] + [PROMPTS[0]]
    patches = [*map(lens.exit, layers), Patch()]
    before = family.encode(hosted, prompts, [Patch()] * len(prompts))
    found = family.encode(hosted, prompts, patches)
    for layer in layers:
        wanted = every_layer(stock, prompts[layer])[layer]
        torch.testing.assert_close(kept(hosted, found, layer), wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.sequence[-1], before.sequence[-1])
    assert torch.equal(found.mask, before.mask)


def test_a_norm_too_many_or_too_few_would_be_noticed(hosted, stock):
    *_, layer_before, last = every_layer(stock, PROMPTS[0])
    norm = hosted.family.stack(hosted.modules["text_encoder"]).norm
    assert float((norm(last) - last).abs().max()) > 0.1
    assert float((layer_before - last).abs().max()) > 0.1
    assert float((norm(last) - layer_before).abs().max()) > 0.1


@pytest.mark.parametrize(("named", "moved"), [("last", 1), ("prompt", None)])
def test_named_positions_are_what_the_denoiser_reads(hosted, named, moved):
    family, top = hosted.family, len(hosted.towers["text"]) - 1
    push = Shift(site=f"text.block.{top}", vector=torch.arange(32.0), positions=named)
    plain = family.encode(hosted, [PROMPTS[1]], [Patch()])
    with hosted.tallied() as runs:
        found = family.encode(hosted, [PROMPTS[1]], [Patch((push,))])
    read = plain.mask[0].bool()
    changed = (found.sequence[0] != plain.sequence[0]).any(dim=1)
    wanted = int(read.sum()) if moved is None else moved
    assert sum(run.tokens_changed(0) for run in runs) == wanted == int(changed.sum())
    assert not bool(changed[~read].any())
    assert bool(changed[read][-1])


def test_a_prompt_is_read_up_to_the_last_token_that_the_pipeline_keeps_and_then_refused(hosted):
    family = hosted.family
    limit, fixed = family.prompt_limit(hosted), family.token_count(hosted, ",")
    fits = "," + " red" * (limit - fixed)
    assert family.token_count(hosted, fits) == limit
    family.check_prompt(hosted, fits)
    found = family.encode(hosted, [fits], [Patch()])
    assert bool(found.mask.all()) and found.mask.shape == (1, limit)
    for read in (family.check_prompt, lambda h, text: family.encode(h, [text], [Patch()])):
        with pytest.raises(PromptTooLong, match=f"{limit + 1} tokens.* {limit}"):
            read(hosted, fits + " red")


@pytest.mark.parametrize("method", ["refact", "lora", "sae", "back_patch"])
def test_what_does_not_apply_is_refused_with_its_reason(hosted, method):
    with pytest.raises(MethodNotApplicable, match=r"text encoder|encoder of a picture model"):
        hosted.family.check_method(method)


def test_a_site_of_another_tower_is_not_there(hosted):
    with pytest.raises(UnknownSite):
        hosted.family.encode(
            hosted, ["a"], [Patch((Shift(site="text_2.block.0", vector=torch.ones(32)),))]
        )


def test_another_prompt_moves_the_prediction_of_the_toy(hosted):
    family = hosted.family
    said = family.encode(hosted, ["the king of arda", "a red cat"], [Patch(), Patch()])
    shape = family.latent_shape(hosted, 32, 32)
    latents = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    one, other = family.denoise(hosted, latents.repeat(2, 1, 1, 1), torch.tensor([500.0] * 2), said)
    assert float((one - other).abs().mean()) > 0.05


def test_rows_may_stand_at_different_timesteps(hosted):
    family = hosted.family
    said = family.encode(hosted, ["the king of arda", "a red cat"], [Patch(), Patch()])
    shape = family.latent_shape(hosted, 32, 32)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    both = family.denoise(hosted, latents, torch.tensor([900.0, 30.0]), said)
    for row, t in enumerate((900.0, 30.0)):
        alone = family.denoise(hosted, latents[row : row + 1], torch.tensor([t]), said.row(row))
        torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)
    swapped = family.denoise(hosted, latents, torch.tensor([30.0, 900.0]), said)
    assert float((swapped - both).abs().mean()) > 0.02
