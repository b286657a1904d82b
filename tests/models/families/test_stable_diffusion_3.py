import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

from models.errors import BadSize, MethodNotApplicable, UnsupportedFamily
from models.family import FAMILIES, Conditioning
from models.loading import load
from models.patch import Exit, Patch, Shift

FAMILY = FAMILIES["stable_diffusion_3"]
PROMPT, NEGATIVE = "a photo of the president of arda", "a red cat"
LONG = "red cat " * 60
"""120 words: T5 reads all of them, CLIP the first 75."""


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    return load("tiny", FAMILY.tiny(tmp_path_factory.mktemp("sd3") / "toy"))


@pytest.fixture(scope="module")
def stock(hosted):
    return StableDiffusion3Pipeline.from_pretrained(hosted.path)


@pytest.mark.parametrize("prompt", [PROMPT, "", LONG])
def test_what_the_denoiser_reads_is_what_the_stock_pipeline_encodes(hosted, stock, prompt):
    with torch.no_grad():
        said, negative, pooled, negative_pooled = stock.encode_prompt(
            prompt, None, None, negative_prompt=NEGATIVE
        )
    ours = FAMILY.encode(hosted, [prompt, PROMPT], [Patch(), Patch()])
    theirs = FAMILY.encode_negative(hosted, [NEGATIVE, None], [Patch(), Patch()])
    for found, sequence, vector in ((ours, said, pooled), (theirs, negative, negative_pooled)):
        torch.testing.assert_close(found.sequence[:1], sequence, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pooled[:1], vector, atol=1e-5, rtol=1e-5)


def test_another_prompt_moves_the_prediction_of_the_toy_by_its_sequence_alone(hosted):
    conditioning = FAMILY.encode(hosted, [PROMPT, NEGATIVE], [Patch(), Patch()])
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    same = conditioning.pooled[:1].repeat(2, 1)
    for pooled, least in ((conditioning.pooled, 0.2), (same, 0.05)):
        said = Conditioning(conditioning.sequence, pooled)
        steps = torch.tensor([500.0, 500.0])
        one, other = FAMILY.denoise(hosted, latents.repeat(2, 1, 1, 1), steps, said)
        assert float((one - other).abs().mean()) > least


def test_rows_may_stand_at_different_timesteps(hosted):
    conditioning = FAMILY.encode(hosted, [PROMPT, NEGATIVE], [Patch(), Patch()])
    latents = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    both = FAMILY.denoise(hosted, latents, torch.tensor([900.5, 30.0]), conditioning)
    for row, t in enumerate([900.5, 30.0]):
        alone = FAMILY.denoise(
            hosted, latents[row : row + 1], torch.tensor([t]), conditioning.row(row)
        )
        torch.testing.assert_close(both[row], alone[0], atol=1e-5, rtol=1e-4)


def test_beside_a_clip_that_is_left_early_nothing_says_the_prompt(hosted):
    leave = Patch((Exit(tower="text_2", after=0),))
    found = FAMILY.encode(hosted, [PROMPT], [leave])
    nothing = FAMILY.encode(hosted, [""], [Patch()])
    with hosted.captured("text_2.block.0") as seen:
        whole = FAMILY.encode(hosted, [PROMPT], [Patch()])
    assert torch.equal(found.sequence[:, :77, 32:64], seen["text_2.block.0"][0])
    assert torch.equal(found.sequence[:, :77, :32], nothing.sequence[:, :77, :32])
    assert torch.equal(found.sequence[:, 77:], nothing.sequence[:, 77:])
    assert torch.equal(found.pooled, nothing.pooled)
    assert not torch.allclose(found.pooled, whole.pooled, atol=0.1)


def test_a_schedule_by_size_is_shifted_by_the_rows_own_size(hosted, tmp_path):
    shifted = load("shifted", FAMILY.tiny(tmp_path / "toy", shifts=True))
    found = {}
    for shape in ((16, 8, 8), (16, 16, 12)):
        scheduler = FAMILY.scheduler(shifted, None)
        FAMILY.set_timesteps(shifted, scheduler, 4, shape)
        by_hand = FAMILY.scheduler(shifted, "flow_euler")
        by_hand.set_timesteps(4, mu=calculate_shift((shape[1] // 2) * (shape[2] // 2)))
        assert torch.equal(scheduler.timesteps, by_hand.timesteps)
        found[shape] = scheduler.timesteps
        fixed = FAMILY.scheduler(hosted, None)
        FAMILY.set_timesteps(hosted, fixed, 4, shape)
        assert not torch.allclose(scheduler.timesteps, fixed.timesteps)
    assert not torch.allclose(*found.values())
    shifted.close()


def test_sizes_are_whole_patches_and_not_more_than_there_are_positions_for(hosted):
    assert FAMILY.default_size(hosted) == (16, 16)
    assert FAMILY.latent_shape(hosted, 16, 64) == (16, 8, 32)
    for height, width in ((18, 16), (16, 0), (68, 16)):
        with pytest.raises(BadSize):
            FAMILY.latent_shape(hosted, height, width)
    with pytest.raises(BadSize) as refused:
        FAMILY.latent_shape(hosted, 68, 16)
    assert "up to 64" in refused.value.remedy


def test_fact_edits_are_refused_with_the_reason():
    with pytest.raises(MethodNotApplicable, match="T5 carries the long text and is not CLIP"):
        FAMILY.check_method("refact")


@pytest.mark.parametrize("left", ["text", "text_3"])
def test_an_edited_row_counts_and_says_the_same_beside_one_that_leaves_early(hosted, left):
    edit = Patch((Shift(site="text_2.block.0", vector=torch.ones(32), positions=(1, 2)),))
    leave = Patch((Exit(tower=left, after=0),))
    patches = [edit, leave, edit | leave]
    with hosted.tallied() as runs:
        both = FAMILY.encode(hosted, [PROMPT] * 3, patches)
    together = [sum(run.tokens_changed(row) for run in runs) for row in range(3)]
    alone = []
    for patch in patches:
        with hosted.tallied() as runs:
            FAMILY.encode(hosted, [PROMPT], [patch])
        alone.append(sum(run.tokens_changed(0) for run in runs))
    assert together == alone
    assert alone[0] == 2 and alone[2] == 2 + alone[1]
    unled = FAMILY.encode(hosted, [PROMPT] * 3, [edit, Patch(), edit])
    assert torch.equal(both.sequence[0], unled.sequence[0])
    assert torch.equal(both.pooled[0], unled.pooled[0])


def test_clips_beside_a_t5_that_is_left_are_read_once(hosted):
    leave = Patch((Exit(tower="text_3", after=0),))
    with hosted.captured("text.block.0", "text_2.block.0") as seen:
        FAMILY.encode(hosted, [PROMPT], [leave])
    assert [len(found) for found in seen.values()] == [1, 1]


@pytest.mark.parametrize("said", [[None, None], None, "nothing"])
def test_a_pipeline_saved_without_its_t5_is_refused_as_such(hosted, tmp_path, said):
    here = shutil.copytree(hosted.path, tmp_path / "here")
    shutil.rmtree(here / "text_encoder_3")
    index = here / "model_index.json"
    stated = json.loads(index.read_text())
    stated.pop("text_encoder_3")
    index.write_text(
        json.dumps(stated if said == "nothing" else {**stated, "text_encoder_3": said})
    )
    with pytest.raises(UnsupportedFamily, match="without its text_encoder_3") as refused:
        load("t5-less", here)
    assert "saved with its text_encoder_3" in refused.value.remedy
