"""Evaluations that go on from what was noted come to the same, and measure nothing twice."""

from dataclasses import replace

import pytest
import torch

from evaluation import advice, audit
from evaluation.circuits.attribution import Scores
from evaluation.gate_meter import Meter
from evaluation.noted import Stage, scores_data, scores_of
from miniature import weights_path
from models.loading import load
from models.patch import LowRank, Patch
from service.datasets import dataset_of
from service.evidence_kinds import KINDS, Subject, beside
from service.evidence_notes import Page, key_of
from service.registry import open_registry
from service.schema_evaluations import DatasetBody, settings_of
from steerers.readers import read

SAE = "block-4-topk"
PARAMS = {
    "circuit": {"steps": 1, "sizes": [0.1, 1.0]},
    "causal_variable": {
        "variable": "output_token",
        "units": [{"layer": 4, "position": "last_token"}],
        "featurizer": {"kind": "das", "n": 4},
        "recipe": {"epochs": 1},
    },
    "feature_gate": {
        "sae": SAE,
        "features": [7, 9, 11],
        "variable": "output_token",
        "off_target": ["One day.", "The forest is green."],
        "draws": 2,
    },
    "layer_advice": {"operation": "sae", "steps": 1},
    "edit_audit": {"steps": 1, "least": 4},
}


@pytest.fixture(scope="module")
def subject():
    hosted = load("miniature-lm", weights_path("language"))
    body = DatasetBody(model="m", generator="ioi", vocabulary="miniature", n=8, seed=3)
    rows = dataset_of(body)
    site = "lm.layers.3.mlp.down_proj"
    width, read_ = hosted.linears[site].weight.shape
    draw = torch.Generator().manual_seed(1)
    left, right = torch.randn(width, 1, generator=draw), torch.randn(1, read_, generator=draw)
    yield Subject(
        hosted=hosted,
        settings=None,
        dataset=rows,
        edits=Patch((LowRank(site=site, left=left, right=right),)),
        suites={"first": rows.first(5), "second": rows.first(4)},
        dictionaries={SAE: read(weights_path("saes") / SAE)},
    )
    hosted.close()


def asking(kind, subject, **params):
    return replace(subject, settings=settings_of(KINDS[kind].settings, {**PARAMS[kind], **params}))


def drained(kind, subject):
    """What was found, and the steps."""
    work, steps = KINDS[kind].run(subject), []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as over:
            return over.value, steps


@pytest.fixture(scope="module")
def undisturbed(subject):
    """A function: what an undisturbed run of a kind found, and its stages; run once."""
    runs = {}

    def of(kind):
        if kind not in runs:
            whole, steps = drained(kind, asking(kind, subject))
            runs[kind] = (whole, steps, kept(steps))
        return runs[kind]

    return of


def kept(steps):
    return {step.name: step.data for step in steps if isinstance(step, Stage)}


def apart(report):
    """Without what the second run cost."""
    return {k: v for k, v in report.items() if k not in {"cost", "seconds", "spent", "versions"}}


@pytest.mark.parametrize("kind", ["circuit", "causal_variable"])
def test_what_is_noted_is_not_found_again_and_comes_to_the_same(kind, subject, undisturbed):
    asked = asking(kind, subject)
    whole, steps, noted = undisturbed(kind)
    assert len(noted) == 1
    later, rest = drained(kind, replace(asked, noted=noted))
    assert not kept(rest) and len(rest) < len(steps)
    assert apart(later.report) == apart(whole.report)


@pytest.mark.parametrize(
    ("kind", "units"),
    [
        ("feature_gate", ["swaps 0", "gate 0", "gate 1", "gate 2"]),
        (
            "layer_advice",
            [f"{unit} {n}" for unit in ("trace", "attribution") for n in range(8)],
        ),
        (
            "edit_audit",
            [
                unit
                for name in ("first", "second")
                for unit in (
                    f"scores before {name}",
                    f"shares before {name}",
                    f"scores after {name}",
                    f"shares after {name}",
                    f"suite {name}",
                )
            ],
        ),
    ],
)
def test_a_run_that_is_broken_off_anywhere_goes_on_behind_its_last_unit(
    kind, units, subject, undisturbed
):
    asked = asking(kind, subject)
    whole, _, stages = undisturbed(kind)
    assert list(stages) == units
    for cut in (1, len(units) // 2 + 1, len(units)):
        noted = {name: stages[name] for name in units[:cut]}
        later, rest = drained(kind, replace(asked, noted=noted))
        assert list(kept(rest)) == units[cut:], "nothing twice, nothing left out"
        assert later.report == whole.report
        assert later.files == whole.files


def test_units_that_were_found_before_count_as_done(subject, undisturbed, monkeypatch):
    asked = asking("layer_advice", subject)
    _, _, stages = undisturbed("layer_advice")
    noted = {name: data for name, data in stages.items() if name < "trace 5"}
    traced, attributed = [], []
    trace, attribute = advice.trace_decoder, advice.attribute
    monkeypatch.setattr(
        advice, "trace_decoder", lambda hosted, some: traced.extend(some) or trace(hosted, some)
    )
    monkeypatch.setattr(
        advice, "attribute", lambda *args: attributed.append(args) or attribute(*args)
    )
    _, rest = drained("layer_advice", replace(asked, noted=noted))
    assert len(traced) == 3 and not attributed
    told = [(s.done, s.total) for s in rest if s.stage == "tracing"]
    assert told == [(5, 8), (6, 8), (7, 8), (8, 8)] and rest[0].message == "found before"


def test_a_suite_and_a_gate_that_are_noted_touch_no_model(subject, undisturbed, monkeypatch):
    noted = undisturbed("edit_audit")[2] | undisturbed("feature_gate")[2]

    def never(*_, **__):
        raise AssertionError("measured again")

    monkeypatch.setattr(audit, "attribute", never)
    monkeypatch.setattr(audit, "_logits", never)
    for name in ("accuracies", "effect", "off_target", "output_scores"):
        monkeypatch.setattr(Meter, name, never)
    for kind in ("edit_audit", "feature_gate"):
        assert drained(kind, replace(asking(kind, subject), noted=noted))[0].report


# --- who reads which notes ------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path):
    opened = open_registry(f"sqlite:///{tmp_path / 'index.db'}", str(tmp_path / "blobs"))
    yield opened
    opened.close()


def payload(**changes):
    budget = {"max_examples": None, "max_seconds": changes.pop("max_seconds", None)}
    told = {"edits": [], "dataset": "d", "suites": {}, "params": {"seed": 0}, "budget": budget}
    return {**told, "id": "evaluation-1", **changes}


def begun(registry, told, kind="layer_advice", tenant="ann"):
    registry.jobs.create(tenant, kind, "m", told, "ann")
    return registry.jobs.lease("worker", [kind], ["m"], 60.0)


def pages(registry, job, subject, **beside):
    page = Page(registry=registry, job=job)
    return page, page.opened(key_of(job, subject.hosted, beside))


def stage(name):
    return Stage(stage="x", done=1, total=1, name=name, data=name.encode())


def test_a_job_that_was_cancelled_is_gone_on_with_by_the_next_equal_one_alone(registry, subject):
    first = begun(registry, payload())
    page, nothing = pages(registry, first, subject)
    assert nothing == {}
    page.keep(stage("trace 0"))
    registry.jobs.cancel(first.id, "ann")
    registry.jobs.stopped(first.id, "worker")
    # Another name and another budget do not decide what is found; rows and params do.
    for changes, wanted in (
        ({"max_seconds": 5.0, "id": "evaluation-2"}, {"trace 0": b"trace 0"}),
        ({"params": {"seed": 1}}, {}),
        ({"dataset": "other"}, {}),
        ({"budget": {"max_examples": 3, "max_seconds": None}}, {}),
    ):
        job = begun(registry, payload(**changes))
        assert pages(registry, job, subject)[1] == wanted, changes
        registry.jobs.finish(job.id, "worker", {})
    other = begun(registry, payload(), tenant="ben")
    assert pages(registry, other, subject)[1] == {}


def test_other_weights_and_another_dictionary_read_nothing_of_it(registry, subject, monkeypatch):
    job = begun(registry, payload())
    page, _ = pages(registry, job, subject, sae="one")
    page.keep(stage("gate 0"))
    assert pages(registry, job, subject, sae="one")[1] == {"gate 0": b"gate 0"}
    assert pages(registry, job, subject, sae="two")[1] == {}
    monkeypatch.setattr(subject.hosted, "fingerprint", "other")
    assert pages(registry, job, subject, sae="one")[1] == {}


def test_a_gate_reads_its_dictionary_and_its_texts_and_so_does_its_key(subject):
    plain = beside(asking("feature_gate", subject))
    assert plain == beside(asking("feature_gate", subject, seed=3))
    assert plain != beside(asking("feature_gate", subject, off_target=["Another."]))
    assert set(plain) == {"sae", "off_target"}
    assert beside(asking("layer_advice", subject)) == {}


def test_what_comes_at_once_is_noted_together_and_nothing_is_lost(registry, subject, monkeypatch):
    job = begun(registry, payload())
    page, _ = pages(registry, job, subject)
    for n in range(5):
        page.keep(stage(f"trace {n}"))
    assert len(registry.notes.of(job.id)) == 1
    monkeypatch.setattr("service.evidence_notes._NOTE_SECONDS", 0.0)
    page.keep(stage("trace 5"))
    assert len(registry.notes.of(job.id)) == 2
    assert set(pages(registry, job, subject)[1]) == {f"trace {n}" for n in range(6)}


def test_scores_are_kept_to_the_last_bit():
    told = Scores(edges=torch.rand(3, 4, dtype=torch.float64), nodes=torch.tensor([float("nan")]))
    back = scores_of(scores_data(told))
    assert torch.equal(back.edges, told.edges) and back.edges.dtype is torch.float64
    assert back.nodes.isnan().all() and back.neurons is None
