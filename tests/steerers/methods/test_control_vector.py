import math

import pytest
import torch

from models.errors import BadPatch, UnknownSite
from models.patch import Patch
from steerers import errors
from steerers.control_vectors import Vectors
from steerers.methods.control_vector import ControlVector, Direction
from steerers.planned import Bounds, Request

SITES = ("lm.block.0", "lm.block.2")


@pytest.fixture(scope="module")
def direction():
    generator = torch.Generator().manual_seed(4)
    vectors = {site: torch.randn(32, generator=generator) for site in SITES}
    return Direction(vectors=Vectors({}, vectors), stream_norms=dict.fromkeys(SITES, 12.0))


@pytest.mark.parametrize(("unit", "length"), [("raw", None), ("unit", 1.0), ("stream", 12.0)])
def test_the_strength_multiplies_its_unit_at_every_site(llama, direction, unit, length):
    asked = ControlVector(vector="joy", strength=0.5, unit=unit)
    planned = asked.plan(llama, {"joy": direction})
    assert sorted(o.site for o in planned.patch) == list(SITES)
    for shift in planned.patch:
        vector = direction.vectors.vectors[shift.site]
        scale = 1.0 if length is None else length / float(vector.norm())
        torch.testing.assert_close(shift.vector, 0.5 * scale * vector)
        assert shift.positions == "last_and_generated"
    told = planned.report["sites"]
    norms = {o.site: float(o.vector.norm()) for o in planned.patch}
    assert {s["site"]: s["vector_norm"] for s in told} == pytest.approx(norms)
    assert all(s["ratio"] == pytest.approx(s["vector_norm"] / 12) for s in told)
    assert planned.report["vector_digest"] == direction.vectors.digest


def test_one_site_of_several(llama, direction):
    asked = ControlVector(vector="joy", sites=(SITES[1],))
    (shift,) = asked.plan(llama, {"joy": direction}).patch
    assert shift.site == SITES[1]


def test_it_moves_the_stream_of_its_row_alone(llama, direction):
    patch = ControlVector(vector="joy", positions="all").plan(llama, {"joy": direction}).patch
    ids = torch.tensor([llama.family.tokenize(llama, "the king of arda")] * 2)
    site = SITES[0]
    with llama.captured(site) as seen:
        with llama.planned([Patch(), patch]):
            steered = llama.family.logits(llama, ids)
        plain = llama.family.logits(llama, ids)
    moved = seen[site][0][1] - seen[site][1][1]
    torch.testing.assert_close(
        moved, direction.vectors.vectors[site].expand_as(moved), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(steered[0], plain[0]) and not torch.equal(steered[1], plain[1])


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"vector": "sorrow"}, errors.UnknownDictionary),
        ({"sites": ("lm.block.1",)}, errors.UnknownDictionary),
        ({"strength": math.nan}, errors.BadStrength),
        ({"strength": 0.0}, errors.NothingToSteer),
        ({"strength": 1e3}, errors.TooStrong),
        ({"skip_special": True}, errors.PromptNeeded),
    ],
)
def test_what_cannot_be_done_is_refused(llama, direction, settings, refusal):
    with pytest.raises(refusal):
        ControlVector(**{"vector": "joy", **settings}).plan(llama, {"joy": direction})


def test_a_direction_of_another_model_is_refused(llama):
    for site, width, refusal in (("lm.block.9", 32, UnknownSite), ("lm.block.0", 16, BadPatch)):
        foreign = Direction(
            vectors=Vectors({}, {site: torch.ones(width)}), stream_norms={site: 9.0}
        )
        with pytest.raises(refusal):
            ControlVector(vector="joy").plan(llama, {"joy": foreign})


def test_a_model_that_draws_has_no_generated_tokens(tiny_sd):
    site = "text.block.0"
    width = tiny_sd.family.stream_width(tiny_sd, "text")
    there = {
        "joy": Direction(vectors=Vectors({}, {site: torch.ones(width)}), stream_norms={site: 9.0})
    }
    with pytest.raises(errors.ModeNotPossible):
        ControlVector(vector="joy").plan(tiny_sd, there)
    assert ControlVector(vector="joy", positions="all").plan(tiny_sd, there).patch


def test_bounds_are_the_callers(llama, direction):
    strict = Request(bounds=Bounds(ratio=0.01))
    with pytest.raises(errors.TooStrong) as refused:
        ControlVector(vector="joy").plan(llama, {"joy": direction}, strict)
    assert refused.value.bound == 0.01
    mild = Request(bounds=Bounds(warn=0.01))
    report = ControlVector(vector="joy").plan(llama, {"joy": direction}, mild).report
    assert len(report["warnings"]) == 2
