import pytest
import torch
from diffusers import IFPipeline

from models.errors import BadSize, MethodNotApplicable
from models.family import FAMILIES
from models.loading import load
from models.patch import Patch

FAMILY = FAMILIES["deepfloyd_if"]
PROMPT, NEGATIVE = "a photo of the president of arda", "a red cat"


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    return load("tiny", FAMILY.tiny(tmp_path_factory.mktemp("if") / "toy"))


def test_what_the_denoiser_reads_is_what_the_stock_pipeline_encodes(hosted):
    stock = IFPipeline.from_pretrained(hosted.path, **FAMILY.left_out())
    for prompt in (PROMPT, "", "  A Red CAT "):
        with torch.no_grad():
            said, negative = stock.encode_prompt(prompt, negative_prompt=NEGATIVE)
        ours = FAMILY.encode(hosted, [prompt, PROMPT], [Patch(), Patch()])
        theirs = FAMILY.encode_negative(hosted, [NEGATIVE, None], [Patch(), Patch()])
        for found, states in ((ours, said), (theirs, negative)):
            torch.testing.assert_close(found.sequence[:1], states, atol=1e-5, rtol=1e-5)


def test_another_prompt_moves_the_prediction_of_the_toy(hosted):
    said = FAMILY.encode(hosted, [PROMPT, NEGATIVE], [Patch(), Patch()])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([500.0, 500.0])
    one, other = FAMILY.denoise(hosted, pixels.repeat(2, 1, 1, 1), steps, said)
    assert float((one - other).abs().mean()) > 0.1


def test_rows_may_stand_at_different_timesteps(hosted):
    said = FAMILY.encode(hosted, [PROMPT, NEGATIVE], [Patch(), Patch()])
    pixels = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    both = FAMILY.denoise(hosted, pixels, torch.tensor([900, 30]), said)
    for row, t in enumerate([900, 30]):
        alone = FAMILY.denoise(hosted, pixels[row : row + 1], torch.tensor([t]), said.row(row))
        torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)


def test_the_noise_is_guided_and_the_variance_is_the_prompts():
    one, other = torch.randn(2, 2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([7.0, 2.0]).view(2, 1, 1, 1)
    found = FAMILY.guide(one, other, scale)
    torch.testing.assert_close(found[:, :3], other[:, :3] + scale * (one - other)[:, :3])
    assert torch.equal(found[:, 3:], one[:, 3:])
    assert FAMILY.guide(one[:, :3], other[:, :3], scale).shape == (2, 3, 4, 4)


def test_a_variance_is_said_only_where_the_schedule_uses_it(hosted, tmp_path):
    fixed = load("fixed", FAMILY.tiny(tmp_path / "toy", learned=False))
    for model, said in ((hosted, 6), (fixed, 3)):
        pixels = torch.zeros(1, *FAMILY.latent_shape(model, 16, 16))
        reads = FAMILY.encode(model, [PROMPT], [Patch()])
        assert FAMILY.denoise(model, pixels, torch.tensor([9]), reads).shape[1] == said
    fixed.close()


def test_samplers_keep_the_models_thresholding(hosted):
    for name in (None, *FAMILY.samplers):
        config = FAMILY.scheduler(hosted, name).config
        assert config.thresholding
        assert (config.sample_max_value, config.dynamic_thresholding_ratio) == (1.5, 0.95)
        assert (config.beta_schedule, config.steps_offset) == ("squaredcos_cap_v2", 0)


def test_pixels_are_drawn_without_a_vae(hosted):
    assert "vae" not in hosted.modules
    assert FAMILY.default_size(hosted) == (16, 16)
    assert FAMILY.latent_shape(hosted, 16, 24) == (3, 16, 24)
    with pytest.raises(BadSize):
        FAMILY.latent_shape(hosted, 17, 16)
    drawn = FAMILY.decode(hosted, torch.tensor([-2.0, 0.0, 1.0]).view(1, 3, 1, 1))
    assert drawn.flatten().tolist() == [0.0, 0.5, 1.0]


def test_fact_edits_are_refused_with_the_reason():
    with pytest.raises(MethodNotApplicable, match="its text encoder is T5"):
        FAMILY.check_method("refact")
