"""What must hold for every steerer that is there."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import steerers.methods
from models.method import Method
from models.patch import Patch
from steerers.known import STEERERS

PROMPTS = ["a red cat", "the king of borea"]


def example(kind):
    return importlib.import_module(STEERERS[kind].__module__).EXAMPLE


def test_each_module_brings_one_steerer_with_an_example():
    names = [p.stem for p in Path(steerers.methods.__path__[0]).glob("[a-z]*.py")]
    assert len(STEERERS) >= len(names) > 0
    for kind in STEERERS:
        assert isinstance(example(kind), Method) and example(kind).kind == kind


@pytest.mark.parametrize("kind", STEERERS)
def test_its_example_plans_the_same_patch_each_time_and_the_model_knows_all_its_places(
    kind, tiny_sd
):
    planned = example(kind).plan(tiny_sd)
    assert planned and planned == replace(example(kind)).plan(tiny_sd)
    tiny_sd.check(planned)


@pytest.mark.parametrize("kind", STEERERS)
def test_its_example_leaves_the_row_beside_it_alone(kind, tiny_sd, tiny_sdxl):
    for hosted in (tiny_sd, tiny_sdxl):
        patch, family = example(kind).plan(hosted), hosted.family
        before = family.encode(hosted, PROMPTS, [Patch(), Patch()])
        after = family.encode(hosted, PROMPTS, [patch, Patch()])
        assert float((after.sequence[0] - before.sequence[0]).abs().max()) > 1e-3
        assert torch.equal(after.sequence[1], before.sequence[1])
        if before.pooled is not None and after.pooled is not None:
            assert torch.equal(after.pooled[1], before.pooled[1])


@pytest.mark.parametrize("kind", STEERERS)
def test_to_plan_changes_no_weight(kind, tiny_sd):
    before = tiny_sd.weights_digest()
    example(kind).plan(tiny_sd)
    assert tiny_sd.weights_digest() == before
