import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from models.family import FAMILIES, Conditioning
from models.patch import Exit, LowRank, Patch

PROMPT, NEGATIVE = "a photo of the president of arda", "a red cat"


def low_rank(tower, block, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        site=tower.fc2_site(block),
        left=torch.randn(32, 1, generator=generator) * 0.5,
        right=torch.randn(1, 64, generator=generator) * 0.5,
    )


def drawn(hosted, sampler, negative=None, patch=None, steps=4):
    family, patches = hosted.family, [patch or Patch()]
    scheduler = family.scheduler(hosted, sampler)
    scheduler.set_timesteps(steps)
    both = Conditioning.stack(
        [
            family.encode_negative(hosted, [negative], patches),
            family.encode(hosted, [PROMPT], patches),
        ]
    )
    generator = torch.Generator().manual_seed(7)
    latents = torch.randn((1, 4, 8, 8), generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, t)
        noise = family.denoise(hosted, scaled.repeat(2, 1, 1, 1), t.repeat(2), both)
        guided = family.guide(noise[1:], noise[:1], torch.full((1, 1, 1, 1), 5.0))
        options = {"generator": generator} if sampler == "lcm" else {}
        latents = scheduler.step(guided, t, latents, **options).prev_sample
    return family.decode(hosted, latents)[0]


def stock(hosted, sampler, negative=None, changes=(), steps=4):
    pipeline = StableDiffusionXLPipeline.from_pretrained(hosted.path, add_watermarker=False)
    pipeline.scheduler = hosted.family.scheduler(hosted, sampler)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for attribute, change in changes:
            body = getattr(pipeline, attribute)
            body = getattr(body, "text_model", body)
            body.encoder.layers[1].mlp.fc2.weight += change.left @ change.right
    return pipeline(
        PROMPT,
        negative_prompt=negative,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images[0]


@pytest.mark.parametrize("sampler", [None, *FAMILIES["stable_diffusion_xl"].samplers])
def test_a_picture_equals_the_stock_pipelines(tiny_sdxl, sampler):
    ours = drawn(tiny_sdxl, sampler)
    assert float((ours - stock(tiny_sdxl, sampler)).abs().max()) < 2e-3
    assert float(ours.std()) > 0.05


@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_a_given_negative_is_encoded_and_a_missing_one_is_zeros(tiny_sdxl, negative):
    ours = drawn(tiny_sdxl, "euler", negative=negative)
    assert float((ours - stock(tiny_sdxl, "euler", negative=negative)).abs().max()) < 2e-3
    assert float((ours - drawn(tiny_sdxl, "euler")).abs().max()) > 0.02
    family, plain = tiny_sdxl.family, [Patch(), Patch()]
    found = family.encode_negative(tiny_sdxl, [None, negative], plain)
    assert float(found.sequence[0].abs().max()) == float(found.pooled[0].abs().max()) == 0.0
    assert torch.equal(
        found.sequence[1], family.encode(tiny_sdxl, ["", negative], plain).sequence[1]
    )


def test_edits_in_both_encoders_equal_edited_weights(tiny_sdxl):
    changes = [(a, low_rank(t, 1)) for a, t in tiny_sdxl.text_towers.items()]
    ours = drawn(tiny_sdxl, "euler", patch=Patch(tuple(change for _, change in changes)))
    assert float((ours - stock(tiny_sdxl, "euler", changes=changes)).abs().max()) < 2e-3
    assert float((ours - drawn(tiny_sdxl, "euler")).abs().max()) > 0.02


def test_a_change_behind_the_last_reachable_block_cannot_be_seen(tiny_sdxl):
    plain = tiny_sdxl.family.encode(tiny_sdxl, [PROMPT], [Patch()])
    for tower in tiny_sdxl.text_towers.values():
        inside, outside = tower.reachable.stop - 1, tower.reachable.stop
        seen, unseen = (
            tiny_sdxl.family.encode(tiny_sdxl, [PROMPT], [Patch((low_rank(tower, b),))])
            for b in (inside, outside)
        )
        assert not torch.equal(seen.sequence, plain.sequence)
        assert torch.equal(unseen.sequence, plain.sequence)


@pytest.mark.parametrize("after", [None, 0, 1, 2])
def test_an_exit_gives_the_raw_stream_and_other_paths_stay_full_if_asked(tiny_sdxl, after):
    family, leave = tiny_sdxl.family, Patch((Exit(tower="text_2", after=after),))
    plain = family.encode(tiny_sdxl, [PROMPT, PROMPT], [Patch(), Patch()])
    found = family.encode(tiny_sdxl, [PROMPT, PROMPT], [leave, Patch()], ["full", "blank"])
    site = "text_2.embedding" if after is None else f"text_2.block.{after}"
    tower = tiny_sdxl.text_towers["text_encoder_2"]
    with torch.no_grad(), tiny_sdxl.captured(site) as seen:
        tower.module(input_ids=tower.tokens([PROMPT, PROMPT], pad="max").ids)
    assert torch.equal(found.sequence[0, :, 32:], seen[site][0][0])
    assert torch.equal(found.sequence[0, :, :32], plain.sequence[0, :, :32])
    assert torch.equal(found.sequence[1], plain.sequence[1])
    assert torch.equal(found.pooled[1], plain.pooled[1])
    torch.testing.assert_close(found.pooled[0], plain.pooled[0])  # read in a pass of its own


def test_sizes_and_crops_are_built_per_row(tiny_sdxl):
    family = tiny_sdxl.family
    conditioning = family.encode(tiny_sdxl, [PROMPT, NEGATIVE], [Patch(), Patch()])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([900, 30])
    own = family.denoise(tiny_sdxl, latents, steps, conditioning)
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16], [64, 64, 8, 8, 16, 16]])
    stated = Conditioning(conditioning.sequence, conditioning.pooled, sizes)
    given = family.denoise(tiny_sdxl, latents, steps, stated)
    torch.testing.assert_close(given[0], own[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(given[1], own[1], atol=1e-3)


def test_beside_a_tower_that_is_left_early_nothing_says_the_prompt(tiny_sdxl):
    family, leave = tiny_sdxl.family, Patch((Exit(tower="text_2", after=1),))
    found = family.encode(tiny_sdxl, [PROMPT], [leave])
    nothing = family.encode(tiny_sdxl, [""], [Patch()])
    full = family.encode(tiny_sdxl, [PROMPT], [leave], ["full"])
    assert torch.equal(found.sequence[..., :32], nothing.sequence[..., :32])
    assert torch.equal(found.sequence[..., 32:], full.sequence[..., 32:])
    assert found.pooled is not None and nothing.pooled is not None
    assert torch.equal(found.pooled, nothing.pooled)


def test_an_edited_row_counts_and_says_the_same_beside_one_that_leaves_early(tiny_sdxl):
    """The pass beside a tower that is left is for that row, and repeats what was counted."""
    family, first = tiny_sdxl.family, tiny_sdxl.text_towers["text_encoder"]
    edit, leave = Patch((low_rank(first, 1),)), Patch((Exit(tower="text_2", after=1),))
    patches = [edit, leave, edit | leave]
    with tiny_sdxl.tallied() as runs:
        both = family.encode(tiny_sdxl, [PROMPT] * 3, patches)
    together = [sum(run.tokens_changed(row) for run in runs) for row in range(3)]
    alone = []
    for patch in patches:
        with tiny_sdxl.tallied() as runs:
            family.encode(tiny_sdxl, [PROMPT], [patch])
        alone.append(sum(run.tokens_changed(0) for run in runs))
    assert together == alone
    assert alone[0] == 77 and alone[2] == 77 + alone[1]
    unled = family.encode(tiny_sdxl, [PROMPT] * 3, [edit, Patch(), edit])
    assert torch.equal(both.sequence[0], unled.sequence[0])
    assert torch.equal(both.pooled[0], unled.pooled[0])
