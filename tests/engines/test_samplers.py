import pytest
import torch

from engines import samplers
from engines.errors import BadRow
from models.clip_pipelines import SAMPLERS
from models.errors import UnknownSampler
from models.family import FAMILIES
from models.loading import load

SHAPE = (4, 8, 8)


def begin(hosted, sampler="ddim", steps=5, seed=0):
    return samplers.begin(hosted.family, hosted, sampler, steps, seed, SHAPE)


def walked(sampling, said, start):
    latents = start
    while not sampling.over:
        latents = sampling.step(said, latents)
    return latents


@pytest.mark.parametrize("sampler", [None, *SAMPLERS])
def test_rows_of_one_sampler_share_nothing(tiny_sd, sampler):
    torch.manual_seed(0)
    said, start = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    alone = walked(begin(tiny_sd, sampler), said, start)
    ours, other = begin(tiny_sd, sampler), begin(tiny_sd, sampler, steps=9, seed=1)
    latents, foreign = start, -start
    while not ours.over:
        latents, foreign = ours.step(said, latents), other.step(-said, foreign)
    assert torch.equal(latents, alone)


def test_noise_is_drawn_in_float32_from_the_rows_own_seed(tiny_sd):
    want = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(7))
    found = begin(tiny_sd, seed=7).noise(SHAPE, torch.bfloat16, torch.device("cpu"))
    assert torch.equal(found, want.to(torch.bfloat16))


def test_a_sampler_that_scales_its_noise_is_heeded(tiny_sd):
    plain = begin(tiny_sd).noise(SHAPE, torch.float32, torch.device("cpu"))
    scaled = begin(tiny_sd, "euler").noise(SHAPE, torch.float32, torch.device("cpu"))
    assert scaled.std() > 5 * plain.std()


def test_a_stochastic_sampler_draws_from_the_row(tiny_sd):
    said, start = torch.ones(1, *SHAPE), torch.zeros(1, *SHAPE)
    drawn = [walked(begin(tiny_sd, "lcm", seed=s), said, start) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"steps": 1000}, "steps"),
        ({"steps": 1000, "sampler": "pndm"}, "steps"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"sampler": "lcm", "steps": 51}, "steps"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tiny_sd, changes, param):
    with pytest.raises(BadRow) as refused:
        begin(tiny_sd, **changes)
    assert refused.value.param == param and refused.value.remedy


def test_as_many_steps_as_an_offset_leaves_begin_at_the_last_level(tiny_sd):
    row = begin(tiny_sd, steps=999)
    assert row.timestep == 999
    assert torch.isfinite(row.step(torch.zeros(1, *SHAPE), torch.zeros(1, *SHAPE))).all()


def test_an_unknown_sampler_is_refused(tiny_sd):
    with pytest.raises(UnknownSampler):
        begin(tiny_sd, "no such sampler")


def test_a_schedule_that_is_not_made_of_numbers_is_refused_before_anything_is_read(tmp_path):
    """Qwen-Image stretches its schedule to end where it shall: of one step that is 0 / 0."""
    family = FAMILIES["qwen_image"]
    hosted = load("qwen", family.tiny(tmp_path / "toy"))
    with pytest.raises(BadRow, match="1 steps") as refused:
        begin(hosted, "flow_euler", steps=1)
    assert (refused.value.param, refused.value.remedy) == ("steps", "Use 2 or more steps.")
    assert begin(hosted, "flow_euler", steps=2).total == 2
    hosted.close()


@pytest.mark.parametrize("levels", ["timesteps", "sigmas"])
def test_every_noise_level_must_be_finite(tiny_sd, monkeypatch, levels):
    def spoiled(_hosted, scheduler, steps, _shape):
        scheduler.set_timesteps(steps)
        setattr(scheduler, levels, torch.tensor([1.0, float("inf"), 0.0]))

    monkeypatch.setattr(tiny_sd.family, "set_timesteps", spoiled)
    with pytest.raises(BadRow) as refused:
        begin(tiny_sd, "ddim")
    assert refused.value.param == "steps"
