"""Evaluations that go on from what was noted come to the same."""

from dataclasses import replace

import pytest
import torch

from evaluation.circuits.attribution import Scores
from miniature import weights_path
from models.loading import load
from service.datasets import dataset_of
from service.evidence_kinds import KINDS, Subject
from service.evidence_notes import Stage, scores_data, scores_of
from service.schema_evaluations import DatasetBody, settings_of

PARAMS = {
    "circuit": {"steps": 1, "sizes": [0.1, 1.0]},
    "causal_variable": {
        "variable": "output_token",
        "units": [{"layer": 4, "position": "last_token"}],
        "featurizer": {"kind": "das", "n": 4},
        "recipe": {"epochs": 1},
    },
}


@pytest.fixture(scope="module")
def subject():
    hosted = load("miniature-lm", weights_path("language"))
    body = DatasetBody(model="m", generator="ioi", vocabulary="miniature", n=8, seed=3)
    yield Subject(hosted=hosted, settings=None, dataset=dataset_of(body))
    hosted.close()


def drained(kind, subject):
    """What was found, and the steps."""
    work, steps = KINDS[kind].run(subject), []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as over:
            return over.value, steps


@pytest.mark.parametrize("kind", list(PARAMS))
def test_what_is_noted_is_not_found_again_and_comes_to_the_same(kind, subject):
    asked = replace(subject, settings=settings_of(KINDS[kind].settings, PARAMS[kind]))
    whole, steps = drained(kind, asked)
    noted = {step.name: step.data for step in steps if isinstance(step, Stage)}
    assert len(noted) == 1
    later, rest = drained(kind, replace(asked, noted=noted))
    assert not any(isinstance(step, Stage) for step in rest) and len(rest) < len(steps)
    own = {"cost", "seconds", "spent", "versions"}
    assert {k: v for k, v in later.report.items() if k not in own} == {
        k: v for k, v in whole.report.items() if k not in own
    }


def test_scores_are_kept_to_the_last_bit():
    told = Scores(edges=torch.rand(3, 4, dtype=torch.float64), nodes=torch.tensor([float("nan")]))
    back = scores_of(scores_data(told))
    assert torch.equal(back.edges, told.edges) and back.edges.dtype is torch.float64
    assert back.nodes.isnan().all() and back.neurons is None
