import pytest
import torch
from diffusers import StableDiffusionPipeline

from models.errors import BadSize, PromptTooLong, UnknownSampler
from models.family import FAMILIES, Conditioning
from models.loading import load
from models.patch import LowRank, Patch

PROMPT, NEGATIVE = "a photo of the president of arda", "a red cat"


def drawn(hosted, sampler, *, negative=None, patch=None):
    """The family's own pieces in a plain loop, one row."""
    family, plain = hosted.family, [patch or Patch()]
    scheduler = family.scheduler(hosted, sampler)
    scheduler.set_timesteps(4)
    conditional = family.encode(hosted, [PROMPT], plain)
    unconditional = family.encode_negative(hosted, [negative], plain)
    both = Conditioning.stack([unconditional, conditional])
    generator = torch.Generator().manual_seed(7)
    shape = family.latent_shape(hosted, *family.default_size(hosted))
    latents = torch.randn((1, *shape), generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, t)
        noise = family.denoise(hosted, scaled.repeat(2, 1, 1, 1), t.repeat(2), both)
        guided = family.guide(noise[1:], noise[:1], torch.full((1, 1, 1, 1), 5.0))
        options = {"generator": generator} if sampler == "lcm" else {}
        latents = scheduler.step(guided, t, latents, **options).prev_sample
    return family.decode(hosted, latents)[0]


def stock(hosted, sampler, *, negative=None, change=None):
    pipeline = StableDiffusionPipeline.from_pretrained(hosted.path)
    pipeline.scheduler = hosted.family.scheduler(hosted, sampler)
    pipeline.set_progress_bar_config(disable=True)
    if change is not None:
        with torch.no_grad():
            pipeline.text_encoder.encoder.layers[1].mlp.fc2.weight += change.left @ change.right
    image = pipeline(
        PROMPT,
        negative_prompt=negative,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images
    return image[0]


@pytest.fixture(scope="module")
def v_prediction(tmp_path_factory):
    folder = FAMILIES["stable_diffusion"].tiny(
        tmp_path_factory.mktemp("v"), prediction="v_prediction"
    )
    return load("tiny-v", folder)


@pytest.mark.parametrize("sampler", [None, *FAMILIES["stable_diffusion"].samplers])
def test_a_picture_equals_the_stock_pipelines(tiny_sd, sampler):
    ours = drawn(tiny_sd, sampler)
    theirs = stock(tiny_sd, sampler)
    assert float((ours - theirs).abs().max()) < 2e-3
    assert float(ours.std()) > 0.05


@pytest.mark.parametrize("sampler", [None, "euler", "dpmpp_2m"])
def test_a_model_that_predicts_velocity_does_too(v_prediction, tiny_sd, sampler):
    ours = drawn(v_prediction, sampler)
    theirs = stock(v_prediction, sampler)
    assert float((ours - theirs).abs().max()) < 2e-3
    assert float((ours - drawn(tiny_sd, sampler)).abs().max()) > 0.02


def test_a_negative_prompt_is_the_stock_pipelines(tiny_sd):
    ours = drawn(tiny_sd, "ddim", negative=NEGATIVE)
    theirs = stock(tiny_sd, "ddim", negative=NEGATIVE)
    assert float((ours - theirs).abs().max()) < 2e-3
    assert float((ours - drawn(tiny_sd, "ddim")).abs().max()) > 0.02


def test_an_edited_row_equals_the_stock_pipeline_with_edited_weights(tiny_sd):
    generator = torch.Generator().manual_seed(1)
    edit = LowRank(
        site=tiny_sd.text_towers["text_encoder"].fc2_site(1),
        left=torch.randn(32, 2, generator=generator) * 0.3,
        right=torch.randn(2, 64, generator=generator) * 0.3,
    )
    ours = drawn(tiny_sd, "ddim", patch=Patch((edit,)))
    theirs = stock(tiny_sd, "ddim", change=edit)
    assert float((ours - theirs).abs().max()) < 2e-3
    assert float((ours - drawn(tiny_sd, "ddim")).abs().max()) > 0.02


def test_another_prompt_moves_the_prediction_of_the_toy(tiny_sd):
    conditioning = tiny_sd.family.encode(tiny_sd, [PROMPT, NEGATIVE], [Patch(), Patch()])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    one, other = tiny_sd.family.denoise(tiny_sd, latents, torch.tensor([500, 500]), conditioning)
    assert float((one - other).abs().mean()) > 0.05


def test_rows_may_stand_at_different_timesteps(tiny_sd):
    family = tiny_sd.family
    conditioning = family.encode(tiny_sd, [PROMPT, NEGATIVE], [Patch(), Patch()])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    both = family.denoise(tiny_sd, latents, torch.tensor([900, 30]), conditioning)
    for row, t in enumerate([900, 30]):
        alone = family.denoise(
            tiny_sd, latents[row : row + 1], torch.tensor([t]), conditioning.row(row)
        )
        torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)


def test_a_scheduler_is_ones_own(tiny_sd):
    first, second = (tiny_sd.family.scheduler(tiny_sd, "euler") for _ in range(2))
    first.set_timesteps(3)
    assert first is not second
    assert len(second.timesteps) != 3
    with pytest.raises(UnknownSampler, match="heun"):
        tiny_sd.family.scheduler(tiny_sd, "heun")


@pytest.mark.parametrize("sampler", FAMILIES["stable_diffusion"].samplers)
def test_no_sampler_clips_what_it_inherits(tiny_sd, sampler):
    config = tiny_sd.family.scheduler(tiny_sd, sampler).config
    assert not config.get("clip_sample", False)
    assert config.prediction_type == "epsilon"
    assert config.beta_end == 0.012


def test_sizes_that_cannot_be_drawn_are_refused(tiny_sd):
    family = tiny_sd.family
    assert family.latent_shape(tiny_sd, 16, 32) == (4, 8, 16)
    for height, width in ((15, 16), (16, 18), (0, 16), (-16, 16)):
        with pytest.raises(BadSize):
            family.latent_shape(tiny_sd, height, width)


def test_a_prompt_is_never_cut_in_silence(tiny_sd):
    family, text = tiny_sd.family, "red " * 80
    assert family.token_count(tiny_sd, "a red cat") == 5
    assert family.prompt_limit(tiny_sd) == 77
    family.check_prompt(tiny_sd, "a red cat")
    with pytest.raises(PromptTooLong):
        family.check_prompt(tiny_sd, text)
    with pytest.raises(PromptTooLong):
        family.encode(tiny_sd, [text], [Patch()])
