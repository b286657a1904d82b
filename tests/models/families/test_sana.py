import json
import shutil

import pytest
import torch
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from models.errors import BadSize, PromptTooLong, UnknownSampler
from models.families.sana import instruction
from models.family import FAMILIES, Conditioning
from models.fingerprint import fingerprint
from models.loading import load
from models.patch import Exit, Patch, Shift

PROMPT, NEGATIVE = "a photo of the president of Arda", "a red cat"


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    hosted = load("tiny-sana", FAMILIES["sana"].tiny(tmp_path_factory.mktemp("sana")))
    yield hosted
    hosted.close()


@pytest.fixture(scope="module")
def stock(hosted):
    pipeline = SanaPipeline.from_pretrained(hosted.path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(hosted, sampler, *, negative=None, steps=4, size=(32, 32)):
    """The family's own pieces in a plain loop, one row."""
    family, plain = hosted.family, [Patch()]
    scheduler, shape = family.scheduler(hosted, sampler), family.latent_shape(hosted, *size)
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
        guided = family.guide(said[:1], said[1:], torch.full((1, 1, 1, 1), 4.5))
        latents = scheduler.step(guided, t, latents).prev_sample
    return family.decode(hosted, latents)[0]


def drawn_by_stock(stock, hosted, sampler, *, negative=None, steps=4, size=(32, 32)):
    stock.scheduler = hosted.family.scheduler(hosted, sampler)
    return stock(
        PROMPT,
        **({} if negative is None else {"negative_prompt": negative}),
        num_inference_steps=steps,
        height=size[0],
        width=size[1],
        use_resolution_binning=False,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images[0]


@pytest.mark.parametrize("sampler", [None, *FAMILIES["sana"].samplers])
@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_a_picture_equals_the_stock_pipelines(hosted, stock, sampler, negative):
    ours = drawn(hosted, sampler, negative=negative)
    theirs = drawn_by_stock(stock, hosted, sampler, negative=negative)
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float(ours.std()) > 0.05


def test_a_negative_moves_the_picture_and_so_does_the_sampler(hosted):
    ours = drawn(hosted, None)
    for other in (drawn(hosted, None, negative=NEGATIVE), drawn(hosted, "flow_euler")):
        assert float((ours - other).abs().max()) > 0.02


def test_the_instruction_stands_before_prompts_and_not_before_negatives(hosted):
    family, words = hosted.family, hosted.parts["words"]
    prompt = family.encode(hosted, [NEGATIVE], [Patch()])
    negative = family.encode_negative(hosted, [NEGATIVE], [Patch()])
    assert instruction().endswith("User Prompt: ")
    assert prompt.layout == negative.layout == ((300, 32), None, None, (300,), None)
    assert int(negative.mask.sum()) == len(words.ids(NEGATIVE))
    # The instruction's last token melts into the prompt's first word, so it is counted once.
    assert int(prompt.mask.sum()) == 1 + len(words.ids(f" {NEGATIVE}")) - 1
    assert not torch.allclose(prompt.sequence[0, 1:4], negative.sequence[0, 1:4], atol=0.1)


def test_case_and_space_around_a_prompt_do_not_matter(hosted):
    family, plain = hosted.family, [Patch()] * 2
    for encode in (family.encode, family.encode_negative):
        found = encode(hosted, ["  A Red CAT\n", "a red cat"], plain)
        assert torch.equal(found.sequence[0], found.sequence[1])


def test_no_negative_is_the_empty_text(hosted):
    found = hosted.family.encode_negative(hosted, [None, ""], [Patch()] * 2)
    assert torch.equal(found.sequence[0], found.sequence[1])
    assert int(found.mask[0].sum()) == 1


def test_a_negative_too_long_for_the_encoder_is_never_cut(hosted):
    family, text = hosted.family, "red" * 100
    assert family.token_count(hosted, text) > 300
    for read in (
        lambda: family.check_prompt(hosted, text),
        lambda: family.encode_negative(hosted, [text], [Patch()]),
    ):
        with pytest.raises(PromptTooLong):
            read()


def test_what_a_patch_does_in_front_of_the_prompt_reaches_what_is_read_behind_it(hosted):
    push = Patch((Shift(site="text.block.0", vector=torch.arange(32.0), positions=(5,)),))
    gone = Patch((Exit(tower="text", after=None), *push))
    plain, pushed, left = (
        hosted.family.encode(hosted, [PROMPT], [p]).sequence for p in (Patch(), push, gone)
    )
    exit_alone = hosted.family.encode(hosted, [PROMPT], [Patch((Exit(tower="text", after=None),))])
    assert not torch.allclose(plain, pushed, atol=1e-3)
    assert torch.equal(left, exit_alone.sequence)


def test_both_samplers_walk_the_flow_whichever_the_checkpoint_ships(hosted, tmp_path):
    here = shutil.copytree(hosted.path, tmp_path / "euler")
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(here / "scheduler")
    index = here / "model_index.json"
    index.write_text(index.read_text().replace("DPMSolverMultistep", "FlowMatchEulerDiscrete"))
    other = load("euler", here)
    for model, shift in ((hosted, 3.0), (other, 2.0)):
        solver = model.family.scheduler(model, "dpmpp_2m").config
        assert solver.use_flow_sigmas and solver.prediction_type == "flow_prediction"
        assert (
            solver.flow_shift == model.family.scheduler(model, "flow_euler").config.shift == shift
        )
        with pytest.raises(UnknownSampler):
            model.family.scheduler(model, "ddim")
    assert torch.equal(drawn(other, None), drawn(other, "flow_euler"))
    other.close()


def test_sizes_that_cannot_be_drawn_are_refused(hosted):
    family = hosted.family
    assert family.default_size(hosted) == (32, 32)
    assert family.latent_shape(hosted, 32, 64) == (4, 8, 16)
    for height, width in ((16, 32), (32, 40), (0, 32), (-32, 32)):
        with pytest.raises(BadSize):
            family.latent_shape(hosted, height, width)


@pytest.mark.parametrize(
    ("key", "other"), [("attn_logit_softcapping", 1.0), ("rms_norm_eps", 1.0), ("head_dim", 4)]
)
def test_gemmas_own_settings_are_part_of_the_fingerprint(hosted, tmp_path, key, other):
    here = shutil.copytree(hosted.path, tmp_path / "here")
    config = here / "text_encoder" / "config.json"
    stated = json.loads(config.read_text())
    assert stated[key] != other
    config.write_text(json.dumps(stated | {key: other}))
    hosted.verify()
    assert fingerprint(here / "text_encoder") != fingerprint(hosted.path / "text_encoder")
