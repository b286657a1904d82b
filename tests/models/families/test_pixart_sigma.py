import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

from models.errors import BadSize, MethodNotApplicable, UnknownSampler, UnsupportedFamily
from models.family import FAMILIES
from models.loading import load
from models.patch import Patch

FAMILY = FAMILIES["pixart_sigma"]
PROMPT, NEGATIVE = "a photo of the president of arda", "a red cat"


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    return load("tiny", FAMILY.tiny(tmp_path_factory.mktemp("pixart") / "toy"))


def test_what_the_denoiser_reads_is_what_the_stock_pipeline_encodes(hosted):
    stock = PixArtSigmaPipeline.from_pretrained(hosted.path)
    for prompt in (PROMPT, "", "  A Red CAT "):
        with torch.no_grad():
            said, mask, negative, negative_mask = stock.encode_prompt(
                prompt, negative_prompt=NEGATIVE
            )
        ours = FAMILY.encode(hosted, [prompt, PROMPT], [Patch(), Patch()])
        theirs = FAMILY.encode_negative(hosted, [NEGATIVE, None], [Patch(), Patch()])
        for found, states, seen in ((ours, said, mask), (theirs, negative, negative_mask)):
            torch.testing.assert_close(found.sequence[:1], states, atol=1e-5, rtol=1e-5)
            assert torch.equal(found.mask[:1], seen)


def test_another_prompt_moves_the_prediction_of_the_toy_and_padding_does_not(hosted):
    said = FAMILY.encode(hosted, [PROMPT, NEGATIVE], [Patch(), Patch()])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents, steps = latents.repeat(2, 1, 1, 1), torch.tensor([500.0, 500.0])
    one, other = FAMILY.denoise(hosted, latents, steps, said)
    assert float((one - other).abs().mean()) > 0.1
    noisy = said.sequence + 10 * (1 - said.mask[..., None])
    padded = FAMILY.denoise(hosted, latents, steps, replace(said, sequence=noisy))
    torch.testing.assert_close(padded[0], one, atol=1e-5, rtol=1e-4)
    unmasked = FAMILY.denoise(hosted, latents, steps, replace(said, mask=said.mask * 0 + 1))
    assert float((unmasked[0] - one).abs().mean()) > 0.02


def test_rows_may_stand_at_different_timesteps_and_say_no_variance(hosted):
    said = FAMILY.encode(hosted, [PROMPT, NEGATIVE], [Patch(), Patch()])
    latents = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    both = FAMILY.denoise(hosted, latents, torch.tensor([900, 30]), said)
    assert both.shape == latents.shape
    for row, t in enumerate([900, 30]):
        alone = FAMILY.denoise(hosted, latents[row : row + 1], torch.tensor([t]), said.row(row))
        torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)


def test_no_sampler_clips_or_shifts_its_steps_by_what_it_inherits(hosted):
    for name in FAMILY.samplers:
        config = FAMILY.scheduler(hosted, name).config
        assert not config.get("clip_sample", False)
        assert config.steps_offset == 0
        assert config.beta_schedule == "linear"
    own, named = (FAMILY.scheduler(hosted, name) for name in (None, "dpmpp_2m"))
    own.set_timesteps(7)
    named.set_timesteps(7)
    assert torch.equal(own.sigmas, named.sigmas)
    with pytest.raises(UnknownSampler, match="lcm"):
        FAMILY.scheduler(hosted, "lcm")


def test_sizes_are_whole_patches(hosted):
    assert FAMILY.default_size(hosted) == (16, 16)
    assert FAMILY.latent_shape(hosted, 16, 24) == (4, 8, 12)
    with pytest.raises(BadSize):
        FAMILY.latent_shape(hosted, 18, 16)


def test_a_transformer_that_reads_sizes_is_not_hosted(hosted, tmp_path):
    folder = tmp_path / "alpha"
    shutil.copytree(hosted.path, folder)
    config = dict(hosted.modules["transformer"].config) | {"use_additional_conditions": True}
    PixArtTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    with pytest.raises(UnsupportedFamily, match="reads sizes"):
        load("alpha", folder)


def test_fact_edits_are_refused_with_the_reason():
    with pytest.raises(MethodNotApplicable, match="its text encoder is T5"):
        FAMILY.check_method("refact")
