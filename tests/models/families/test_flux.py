import pytest
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from engines.diffusion import DiffusionEngine
from engines.request import ImageRequest
from models.errors import BadSize, MethodNotApplicable, NegativeUnread
from models.family import FAMILIES, Conditioning
from models.loading import load
from models.patch import Exit, Patch

FAMILY = FAMILIES["flux"]
PROMPT, OTHER = "a photo of the president of arda", "a red cat"
LONG = "red cat " * 60
"""120 words: T5 reads all of them, CLIP the first 75."""


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    return load("dev", FAMILY.tiny(tmp_path_factory.mktemp("flux") / "dev"))


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    return load("schnell", FAMILY.tiny(tmp_path_factory.mktemp("flux") / "schnell", schnell=True))


@pytest.mark.parametrize("prompt", [PROMPT, "", LONG])
@pytest.mark.parametrize(("name", "length"), [("hosted", 512), ("schnell", 256)])
def test_what_the_denoiser_reads_is_what_the_stock_pipeline_encodes(request, name, length, prompt):
    model = request.getfixturevalue(name)
    stock = FluxPipeline.from_pretrained(model.path)
    with torch.no_grad():
        said, pooled, places = stock.encode_prompt(prompt, max_sequence_length=length)
    found = FAMILY.encode(model, [prompt, OTHER], [Patch(), Patch()])
    assert float(places.abs().max()) == 0
    torch.testing.assert_close(found.sequence[:1], said, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.pooled[:1], pooled, atol=1e-5, rtol=1e-5)


def test_another_prompt_or_scale_moves_the_prediction_of_the_toy(hosted):
    conditioning = FAMILY.encode(hosted, [PROMPT, OTHER], [Patch(), Patch()])
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    same = Conditioning(conditioning.sequence, conditioning.pooled[:1].repeat(2, 1))
    alike = conditioning.row(0)
    scales = [FAMILY.with_guidance(hosted, alike, scale) for scale in (1.0, 3.5)]
    steps = torch.tensor([500.0, 500.0])
    by_prompt = (FAMILY.with_guidance(hosted, c, 3.5) for c in (conditioning, same))
    cases = zip((0.2, 0.05, 0.05), (*by_prompt, Conditioning.stack(scales)), strict=True)
    for least, said in cases:
        one, other = FAMILY.denoise(hosted, latents.repeat(2, 1, 1, 1), steps, said)
        assert float((one - other).abs().mean()) > least


def test_rows_may_stand_at_different_timesteps_and_scales(hosted):
    said = FAMILY.encode(hosted, [PROMPT, OTHER], [Patch(), Patch()])
    rows = [FAMILY.with_guidance(hosted, said.row(i), (1.5, 7.0)[i]) for i in range(2)]
    latents = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([900.5, 30.0])
    both = FAMILY.denoise(hosted, latents, steps, Conditioning.stack(rows))
    for i, row in enumerate(rows):
        alone = FAMILY.denoise(hosted, latents[i : i + 1], steps[i : i + 1], row)
        torch.testing.assert_close(both[i], alone[0], atol=1e-5, rtol=1e-4)


def test_only_dev_reads_the_scale(hosted, schnell):
    for model, read in ((hosted, True), (schnell, False)):
        plain = FAMILY.encode(model, [PROMPT], [Patch()])
        said = FAMILY.with_guidance(model, plain, 3.5)
        assert (said.guidance is not None) == read
    assert not FAMILY.is_guided(7.0)


def test_a_negative_prompt_is_refused_at_the_door(hosted):
    engine = DiffusionEngine(hosted, slots=1)
    try:
        with pytest.raises(NegativeUnread, match="distilled"):
            engine.submit(ImageRequest(id="r", prompt=PROMPT, negative_prompt=OTHER), print)
    finally:
        engine.stop()
    FAMILY.check_negative(hosted, "")
    FAMILY.check_negative(hosted, None)


def test_beside_a_clip_that_is_left_early_t5_says_nothing(hosted):
    leave = Patch((Exit(tower="text", after=0),))
    found = FAMILY.encode(hosted, [PROMPT], [leave])
    nothing, whole = (FAMILY.encode(hosted, [text], [Patch()]) for text in ("", PROMPT))
    assert torch.equal(found.sequence, nothing.sequence)
    for other in (nothing, whole):
        assert not torch.allclose(found.pooled, other.pooled, atol=0.1)


def test_a_schedule_by_size_is_shifted_by_the_rows_own_size(hosted, schnell):
    found = []
    for shape in ((16, 8, 8), (16, 16, 12)):
        scheduler = FAMILY.scheduler(hosted, None)
        FAMILY.set_timesteps(hosted, scheduler, 4, shape)
        mu = torch.tensor(calculate_shift((shape[1] // 2) * (shape[2] // 2)))
        even = torch.tensor([1.0, 0.75, 0.5, 0.25])
        wanted = 1000 * mu.exp() / (mu.exp() + 1 / even - 1)
        torch.testing.assert_close(scheduler.timesteps, wanted, atol=1e-2, rtol=0)
        found.append(scheduler.timesteps)
        plain = FAMILY.scheduler(schnell, None)
        FAMILY.set_timesteps(schnell, plain, 4, shape)
        torch.testing.assert_close(plain.timesteps, 1000 * even)
    assert not torch.allclose(*found)


def test_sizes_are_whole_packs(hosted):
    assert FAMILY.default_size(hosted) == (256, 256)
    assert FAMILY.latent_shape(hosted, 16, 24) == (16, 8, 12)
    for height, width in ((18, 16), (16, 0)):
        with pytest.raises(BadSize):
            FAMILY.latent_shape(hosted, height, width)


def test_fact_edits_are_refused_with_the_reason():
    with pytest.raises(MethodNotApplicable, match="only through the 768-wide pooled vector"):
        FAMILY.check_method("refact")
