import pytest
import torch

from models.patch import Clamp, Exit, Patch, Shift
from steerers.errors import ClampedTwice, NothingToSteer, TooStrong
from steerers.methods.diffusion_lens import DiffusionLens
from steerers.planned import Bounds, Planned, of_patch
from steerers.whole import whole

SITE = "lm.block.1"
EAST, NORTH = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
BOUNDS = Bounds(ratio=10.0)


def shift(vector, positions="last_and_generated", stream_norm=1.0):
    patch = Patch((Shift(site=SITE, vector=vector, positions=positions),))
    return Planned(patch=patch, report={}, stream_norms={SITE: stream_norm})


def clamp(value, positions="all", reach=2.0, feature=EAST):
    made = Clamp(
        site=SITE,
        encoder=feature,
        encoder_bias=0.0,
        decoder=feature,
        value=value,
        positions=positions,
    )
    return Planned(
        patch=Patch((made,)),
        report={},
        stream_norms={SITE: 1.0},
        reaches={made.digest: reach},
    )


def ratio(*parts, tokens=4):
    (site,) = whole(parts, tokens, BOUNDS).sites
    return site["ratio"]


def test_shifts_of_the_same_tokens_become_one():
    (one,) = whole([shift(EAST), shift(NORTH)], 4, BOUNDS).patch
    torch.testing.assert_close(one.vector, EAST + NORTH)
    assert ratio(shift(EAST), shift(NORTH)) == pytest.approx(5.0)


def test_the_order_of_plans_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    parts = [shift(torch.randn(2, generator=generator)) for _ in range(5)]
    patches = [whole(some, 4, BOUNDS).patch for some in (parts, parts[::-1])]
    assert patches[0].digest == patches[1].digest


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        (("prompt", "generated"), 4.0),
        (("all", "generated"), 5.0),
        (("last_and_generated", "prompt"), 5.0),
        (((0, 1), (2, 3)), 4.0),
        (((0, 1), (1, 2)), 5.0),
        (((0, 1), "last"), 4.0),
    ],
)
def test_only_what_meets_at_a_token_adds_up(places, wanted):
    assert ratio(shift(EAST, places[0]), shift(NORTH, places[1])) == pytest.approx(wanted)


def test_the_bound_is_the_rows_and_not_each_plans():
    assert whole([shift(EAST)] * 3, 4, BOUNDS).warnings
    with pytest.raises(TooStrong):
        whole([shift(EAST)] * 4, 4, BOUNDS)


def test_the_shortest_stream_is_what_a_sum_is_weighed_against():
    assert ratio(shift(EAST, stream_norm=2.0), shift(NORTH, stream_norm=4.0)) == pytest.approx(2.5)


@pytest.mark.parametrize("places", [("all", "all"), ("all", "generated"), ("prompt", (0,))])
def test_what_cancels_at_a_token_is_refused(places):
    with pytest.raises(NothingToSteer):
        whole([shift(EAST, places[0]), shift(-EAST, places[1])], 4, BOUNDS)


def test_what_rounding_leaves_of_zero_is_zero():
    thirds = [shift(EAST / 3)] * 3
    with pytest.raises(NothingToSteer):
        whole([*thirds, shift(-EAST)], 4, BOUNDS)


def test_the_same_clamp_twice_is_one():
    found = whole([clamp(1.0), clamp(1.0)], 4, BOUNDS)
    assert len(found.patch.operations) == 1
    assert found.sites[0]["ratio"] == pytest.approx(2.0)


@pytest.mark.parametrize("other", [clamp(2.0), clamp(1.0, "generated")])
def test_a_feature_is_held_in_one_way_at_each_token(other):
    with pytest.raises(ClampedTwice):
        whole([clamp(1.0), other], 4, BOUNDS)


def test_clamps_of_other_features_or_other_tokens_stand_side_by_side():
    assert ratio(clamp(1.0), clamp(1.0, feature=NORTH)) == pytest.approx(4.0)
    assert ratio(clamp(1.0, "prompt"), clamp(2.0, "generated", reach=3.0)) == pytest.approx(3.0)
    assert ratio(clamp(1.0), shift(EAST)) == pytest.approx(5.0)


def test_what_is_neither_added_nor_clamped_goes_on_as_it_is():
    leaves = Exit(tower="lm", after=0)
    found = whole(
        [Planned(patch=Patch((leaves,)), report={}, stream_norms={}), shift(EAST)], 4, BOUNDS
    )
    assert leaves.digest in {operation.digest for operation in found.patch}
    assert len(found.sites) == 1


def test_a_mere_patch_is_weighed_and_told_by_its_settings():
    settings = DiffusionLens(layer=1)
    plan = of_patch(settings, shift(NORTH).patch, {SITE: 2.0}, BOUNDS)
    assert (plan.report["kind"], plan.report["layer"]) == ("diffusion_lens", 1)
    assert plan.report["sites"][0]["ratio"] == pytest.approx(2.0)
    assert len(plan.report["warnings"]) == 1
    with pytest.raises(TooStrong):
        of_patch(settings, shift(NORTH).patch, {SITE: 0.1}, BOUNDS)
    with pytest.raises(TypeError, match="reaches"):
        of_patch(settings, clamp(1.0).patch, {SITE: 2.0}, BOUNDS)
