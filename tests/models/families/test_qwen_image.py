import json
import shutil

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline

from models.errors import BadSize, PromptTooLong, UnknownSampler, UnknownSetting
from models.families.qwen_image import packed, unpacked
from models.family import FAMILIES, Conditioning
from models.fingerprint import fingerprint
from models.loading import load
from models.patch import Patch

PROMPT, NEGATIVE = "a photo of the president of Arda", "a red cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return FAMILIES["qwen_image"].tiny(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def hosted(folder):
    hosted = load("tiny-qwen-image", folder)
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def short(folder, tmp_path_factory):
    """The same model, whose denoiser reads 64 tokens."""
    here = shutil.copytree(folder, tmp_path_factory.mktemp("qwen") / "short")
    (here / "tiller.json").write_text('{"text_tokens": 64}')
    hosted = load("short", here)
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def stock(folder):
    pipeline = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(hosted, *, negative=None, size=(16, 16), steps=4, scale=4.0):
    """The family's own pieces in a plain loop, one row."""
    family, plain = hosted.family, [Patch()]
    scheduler, shape = family.scheduler(hosted, None), family.latent_shape(hosted, *size)
    family.set_timesteps(hosted, scheduler, steps, shape)
    both = Conditioning.stack(
        [
            family.encode(hosted, [PROMPT], plain),
            family.encode_negative(hosted, [negative], plain),
        ]
    )
    latents = torch.randn((1, *shape), generator=torch.Generator().manual_seed(7))
    for t in scheduler.timesteps:
        said = family.denoise(hosted, latents.repeat(2, 1, 1, 1), t.repeat(2), both)
        guided = family.guide(said[:1], said[1:], torch.full((1, 1, 1, 1), scale))
        latents = scheduler.step(guided, t, latents).prev_sample
    return family.decode(hosted, latents)[0]


def drawn_by_stock(stock, hosted, *, negative, size=(16, 16), steps=4, scale=4.0):
    stock.scheduler = hosted.family.scheduler(hosted, None)
    return stock(
        PROMPT,
        negative_prompt=negative,
        true_cfg_scale=scale,
        num_inference_steps=steps,
        height=size[0],
        width=size[1],
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images[0]


@pytest.mark.parametrize("negative", [NEGATIVE, "", " "])
@pytest.mark.parametrize("size", [(16, 16), (32, 48)])
def test_a_picture_equals_the_stock_pipelines(hosted, stock, negative, size):
    ours = drawn(hosted, negative=negative, size=size)
    theirs = drawn_by_stock(stock, hosted, negative=negative, size=size)
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float(ours.std()) > 0.05


def test_no_negative_is_a_space_which_is_not_the_empty_text(hosted):
    ours, space = drawn(hosted), drawn(hosted, negative=" ")
    assert torch.equal(ours, space)
    assert float((ours - drawn(hosted, negative=NEGATIVE)).abs().max()) > 0.02
    found = hosted.family.encode_negative(hosted, [None, " ", ""], [Patch()] * 3)
    assert torch.equal(found.sequence[0], found.sequence[1])
    assert int(found.mask[0].sum()) == int(found.mask[2].sum()) + 1


def test_masked_positions_behind_the_text_change_nothing(hosted, short):
    """What the stock pipeline does for one prompt: its own length, and no mask."""
    family = hosted.family
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    steps = torch.tensor([900.0, 30.0])
    said = family.encode(hosted, [PROMPT, NEGATIVE], [Patch()] * 2)
    ours = family.denoise(hosted, latents, steps, said)
    less = family.encode(short, [PROMPT, NEGATIVE], [Patch()] * 2)
    assert less.sequence.shape[1] == 64 < said.sequence.shape[1] == 512
    torch.testing.assert_close(
        family.denoise(short, latents, steps, less), ours, atol=1e-5, rtol=1e-4
    )
    for row in range(2):
        own = Conditioning(said.sequence[row : row + 1, said.mask[row].bool()])
        alone = family.denoise(hosted, latents[row : row + 1], steps[row : row + 1], own)
        torch.testing.assert_close(ours[row], alone[0], atol=1e-5, rtol=1e-4)


def test_what_stands_in_masked_positions_does_not_matter(hosted):
    family = hosted.family
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    said = family.encode(hosted, [PROMPT], [Patch()])
    behind = (said.mask == 0)[..., None]
    assert float(said.sequence.masked_select(behind).abs().max()) == 0.0
    noisy = Conditioning(said.sequence.masked_fill(behind, 9.0), mask=said.mask)
    found = [family.denoise(hosted, latents, torch.tensor([500.0]), c) for c in (said, noisy)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)
    unmasked = Conditioning(noisy.sequence, mask=torch.ones_like(noisy.mask))
    other = family.denoise(hosted, latents, torch.tensor([500.0]), unmasked)
    assert float((other - found[0]).abs().max()) > 0.1


def test_the_models_own_file_says_how_many_tokens_are_read(short, hosted, stock):
    family, text = short.family, "red " * 70
    assert family.prompt_limit(short) == 64
    assert family.prompt_limit(hosted) == 512
    family.check_prompt(hosted, text)
    with pytest.raises(PromptTooLong, match="64"):
        family.check_prompt(short, text)
    theirs = drawn_by_stock(stock, short, negative=" ")
    assert float((drawn(short) - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize("stated", ["0", "15", "1025", "-4", "true", '"512"', "64.0", "null"])
def test_a_number_of_tokens_that_cannot_be_read_is_refused_when_the_model_is_loaded(
    folder, tmp_path, stated
):
    here = shutil.copytree(folder, tmp_path / "here")
    (here / "tiller.json").write_text(f'{{"text_tokens": {stated}}}')
    with pytest.raises(UnknownSetting, match="text_tokens") as refused:
        load("unreadable", here)
    assert "16 to 1024" in refused.value.remedy


def test_the_template_is_dropped_up_to_the_prompt(hosted):
    words, template = hosted.parts["words"], hosted.parts["template"]
    ids = words.ids(template.format("zebra"))
    assert ids[34:][: len(words.ids("zebra"))] == words.ids("zebra")
    assert hosted.family.token_count(hosted, "zebra") == len(ids) - 34


def test_guidance_keeps_the_length_of_every_token(hosted):
    generator = torch.Generator().manual_seed(2)
    prompt, negative = (torch.randn(2, 4, 4, 6, generator=generator) for _ in range(2))
    scale = torch.tensor([4.0, 9.0]).view(2, 1, 1, 1)
    found = packed(hosted.family.guide(prompt, negative, scale))
    torch.testing.assert_close(found.norm(dim=-1), packed(prompt).norm(dim=-1))
    wanted = packed(negative + scale * (prompt - negative))
    torch.testing.assert_close(
        torch.nn.functional.normalize(found, dim=-1), torch.nn.functional.normalize(wanted, dim=-1)
    )


def test_packing_is_the_pipelines_and_can_be_undone():
    latents = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    theirs = QwenImagePipeline._pack_latents(latents, 2, 4, 4, 6)
    assert torch.equal(packed(latents), theirs)
    assert torch.equal(unpacked(theirs, 4, 6), latents)


def test_a_larger_picture_has_another_schedule_in_the_same_batch(hosted):
    family = hosted.family
    schedules = []
    for size in ((16, 16), (256, 256)):
        scheduler = family.scheduler(hosted, "flow_euler")
        family.set_timesteps(hosted, scheduler, 4, family.latent_shape(hosted, *size))
        schedules.append(scheduler.timesteps)
    assert len(schedules[0]) == len(schedules[1]) == 4
    assert float((schedules[0] - schedules[1]).abs().max()) > 1


def test_sizes_and_samplers_that_it_cannot_draw_with_are_refused(hosted):
    family = hosted.family
    assert family.default_size(hosted) == (256, 256)
    assert family.latent_shape(hosted, 16, 20) == (4, 8, 10)
    for height, width in ((16, 18), (15, 16), (0, 16), (-16, 16)):
        with pytest.raises(BadSize):
            family.latent_shape(hosted, height, width)
    with pytest.raises(UnknownSampler):
        family.scheduler(hosted, "dpmpp_2m")


def test_settings_of_the_part_that_reads_texts_are_in_the_fingerprint(folder, tmp_path):
    here = shutil.copytree(folder / "text_encoder", tmp_path / "here")
    stated = json.loads((here / "config.json").read_text())
    for changed in ({"num_key_value_heads": 4}, {"rms_norm_eps": 1.0}, {"rope_parameters": {}}):
        text = stated["text_config"] | changed
        assert text != stated["text_config"]
        (here / "config.json").write_text(json.dumps(stated | {"text_config": text}))
        assert fingerprint(here) != fingerprint(folder / "text_encoder")
