"""Files that evaluations leave beside their reports."""

import io
import zipfile

import pytest
import torch

from evaluation.circuits.files import SHARES
from evaluation.circuits.study import Circuit
from evaluation.variables.featurizers import Directions, Featurizer
from evaluation.variables.submission import submission_bytes
from evaluation.variables.units import Unit
from miniature import weights_path
from models.loading import load
from service.datasets import dataset_of
from service.evidence_exports import circuit_submission
from service.evidence_kinds import _SUBMITTED_BYTES, KINDS, Subject
from service.schema_evaluations import DatasetBody


@pytest.fixture(scope="module")
def hosted():
    model = load("miniature-lm", weights_path("language"))
    yield model
    model.close()


@pytest.fixture(scope="module")
def names():
    return dataset_of(DatasetBody(model="m", generator="ioi", vocabulary="miniature", n=8))


def files_of(kind, **stated):
    work = KINDS[kind].run(Subject(**stated))
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value.files


def test_circuits_that_grow_leave_nine_memberships(hosted, names):
    grown = Circuit(method="information-flow-routes", sizes=(0.1, 1.0))
    made = files_of("circuit", hosted=hosted, settings=grown, dataset=names)
    with zipfile.ZipFile(io.BytesIO(made["memberships.zip"])) as archive:
        assert archive.namelist() == [f"{i}_{share:g}.pt" for i, share in enumerate(SHARES)]
        told = torch.load(archive.open("8_0.5.pt"), weights_only=True)
    assert told["edges_in_graph"].any() and not told["edges_in_graph"].all()
    # A tenth file would make the evaluator read them as scores, or leave one out.
    assert len(circuit_submission(made)) == 9
    taken = Circuit(method="random", sizes=(0.1, 1.0))
    made = files_of("circuit", hosted=hosted, settings=taken, dataset=names)
    assert circuit_submission(made) == {"importances.pt": made["importances.pt"]}


def test_a_sweep_of_a_large_model_is_too_much_for_one_archive():
    made = Featurizer(kind="das", features=Directions(rotation=torch.zeros(4096, 16)))
    units = [Unit(layer=i, position="last_token") for i in range(32)]
    assert submission_bytes([((unit,), (made,)) for unit in units]) > _SUBMITTED_BYTES
    assert submission_bytes([((unit,), (made,)) for unit in units[:3]]) < _SUBMITTED_BYTES
