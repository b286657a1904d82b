"""What must hold for every steerer that is there."""

import importlib
from pathlib import Path

import pytest
import torch

import steerers.methods
from models.errors import MethodNotApplicable
from models.family import FAMILIES, TextToImage
from models.loading import load
from models.method import Method
from models.patch import Patch
from steerers.control_vectors import Vectors
from steerers.known import STEERERS
from steerers.methods.control_vector import Direction

PROMPTS = ["a red cat", "the king of borea"]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request):
    found = FAMILIES[request.param]
    if not isinstance(found, TextToImage):
        pytest.skip("its rows are tested with the language engine")
    return found


@pytest.fixture(scope="module")
def hosted(family, tmp_path_factory):
    hosted = load("tiny", family.tiny(tmp_path_factory.mktemp(family.kind)))
    yield hosted
    hosted.close()


def example(kind):
    return importlib.import_module(STEERERS[kind].__module__).EXAMPLE


def planned(kind, hosted):
    """The example's patch; methods that steer with something get it under the name of the toy."""
    if kind == "control_vector":
        return example(kind).plan(hosted, {"toy": direction_for(hosted)}).patch
    found = example(kind).plan(hosted)
    return getattr(found, "patch", found)


def direction_for(hosted):
    """One vector behind the first block of every tower."""
    widths = {f"{t}.block.0": hosted.family.stream_width(hosted, t) for t in hosted.towers}
    drawn = torch.Generator().manual_seed(0)
    vectors = {site: torch.randn(width, generator=drawn) for site, width in widths.items()}
    norms = {site: float(width) for site, width in widths.items()}
    return Direction(vectors=Vectors({}, vectors), stream_norms=norms)


def test_each_module_brings_one_steerer_with_an_example():
    names = [p.stem for p in Path(steerers.methods.__path__[0]).glob("[a-z]*.py")]
    assert len(STEERERS) >= len(names) > 0
    for kind in STEERERS:
        assert isinstance(example(kind), Method) and example(kind).kind == kind


@pytest.mark.parametrize("kind", STEERERS)
def test_its_example_plans_the_same_patch_each_time_and_the_model_knows_all_its_places(
    kind, tiny_sd
):
    if tiny_sd.family.applies.get(kind, "") is not None:
        pytest.skip("it does not apply to models that draw: see its own test")
    patch = planned(kind, tiny_sd)
    assert patch and patch == planned(kind, tiny_sd)
    tiny_sd.check(patch)


@pytest.mark.parametrize("kind", STEERERS)
def test_its_example_leaves_the_row_beside_it_alone(kind, family, hosted):
    if family.applies.get(kind, "") is not None:
        with pytest.raises(MethodNotApplicable):
            example(kind).plan(hosted)
        return
    patch = planned(kind, hosted)
    before = family.encode(hosted, PROMPTS, [Patch(), Patch()])
    after = family.encode(hosted, PROMPTS, [patch, Patch()])
    assert float((after.sequence[0] - before.sequence[0]).abs().max()) > 1e-3
    for ours, theirs in zip(after.parts, before.parts, strict=True):
        assert ours is theirs is None or torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("kind", STEERERS)
def test_to_plan_changes_no_weight(kind, tiny_sd):
    if tiny_sd.family.applies.get(kind, "") is not None:
        pytest.skip("it does not apply to models that draw: see its own test")
    before = tiny_sd.weights_digest()
    planned(kind, tiny_sd)
    assert tiny_sd.weights_digest() == before
