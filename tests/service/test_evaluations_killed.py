"""Evaluations whose service is killed or stopped go on from their units and come to the same."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from editors.delta import Delta, Factors
from evaluation.gate_meter import Meter
from service.client import Tiller
from service.registry.notes import Notes
from service.running import serving as started
from service.settings import Model, Server, Settings

MODEL = "miniature-lm"
ELSEWHERE = ["One day.", "The end.", "A wood.", "A king.", "It is so.", "They went."]
SITE = "lm.layers.3.mlp.down_proj"
UNDISTURBED = {"max_seconds": 3600.0}
"""Another request by its name, and the same work."""


def children():
    return {
        int(pid)
        for told in Path("/proc/self/task").glob("*/children")
        for pid in told.read_text().split()
    }


def awaited(tiller, job, enough):
    """The job's log once it says enough; the job must not be over before."""
    while True:
        told = tiller.jobs.show(job)
        assert told["state"] in ("queued", "running"), told
        if enough(told["log"]):
            return told["log"]
        time.sleep(0.02)


CONFIG = f"""
[jobs]
lease_seconds = 3600
[[models]]
name = "{MODEL}"
path = "miniature:language"
slots = 1
"""
"""A lease that nobody would wait for."""


def test_a_service_that_is_killed_goes_on_at_once_behind_the_last_noted_pair(tmp_path):
    config, home, before = tmp_path / "models.toml", tmp_path / "home", children()
    config.write_text(CONFIG)
    with started(home, local=True, config=config) as url, Tiller(url) as tiller:
        rows = tiller.datasets.make(model=MODEL, generator="ioi", vocabulary="miniature", n=30)
        asked = {"dataset": rows["id"], "params": {"operation": "sae", "steps": 3}}
        begun = tiller.evaluations.start("layer_advice", model=MODEL, **asked)["id"]
        awaited(tiller, begun, lambda log: any(line.startswith("attribution ") for line in log))
        (child,) = children() - before
        os.killpg(child, signal.SIGKILL)
    with started(home, local=True, config=config) as url, Tiller(url) as tiller:
        job = tiller.jobs.wait(begun)
        assert "its worker was lost" in job["log"] and job["state"] == "succeeded"
        (resumed,) = [line for line in job["log"] if line.endswith("found before")]
        done, total = map(int, resumed.split()[1].split("/"))
        assert 1 <= done <= total == 30
        again = tiller.evaluations.start("layer_advice", model=MODEL, budget=UNDISTURBED, **asked)
        whole = tiller.jobs.wait(again["id"])
        assert not [line for line in whole["log"] if line.endswith("found before")]
        assert job["result"]["evaluation"] != whole["result"]["evaluation"]
        assert job["result"]["report"] == whole["result"]["report"]


@pytest.fixture
def settings(tmp_path):
    model = Model(name=MODEL, path="miniature:language", slots=2)
    return Settings(home=tmp_path, server=Server(port=0, drain_seconds=20.0), models=(model,))


def edited(bench, fingerprint):
    """A version of an edit that changes one matrix a little."""
    draw = torch.Generator().manual_seed(2)
    left, right = torch.randn(192, 1, generator=draw), torch.randn(1, 512, generator=draw)
    none = torch.zeros(0, 1)
    factors = Factors(left, right, none.expand(0, 512), none.expand(0, 512), none.expand(0, 192))
    base = {"model": MODEL, "fingerprint": fingerprint}
    delta = Delta({"base": base, "method": "lora"}, {SITE: factors})
    bench.registry.edits.register(
        "default", "small", MODEL, fingerprint, delta.data, delta.header, actor="test"
    )


def test_gates_and_audits_that_were_stopped_or_cancelled_go_on(settings, serving, monkeypatch):
    monkeypatch.setattr("service.evidence_notes._NOTE_SECONDS", 0.0)
    effect, slowly = Meter.effect, threading.Event()

    def measured(self, features):
        if slowly.is_set():
            time.sleep(0.3)  # so that the service stops in the middle, however fast it is
        return effect(self, features)

    monkeypatch.setattr(Meter, "effect", measured)
    slowly.set()
    with serving(settings) as (url, bench), Tiller(url) as tiller:
        sae = next(one["id"] for one in tiller.saes.list() if one["site"] == "lm.block.3")
        drawn = {"generator": "ioi", "vocabulary": "miniature"}
        rows = tiller.datasets.make(model=MODEL, n=10, seed=3, **drawn)["id"]
        more = tiller.datasets.make(model=MODEL, n=10, seed=4, **drawn)["id"]
        edited(bench, tiller.models.show(MODEL)["fingerprint"])
        params = {"sae": sae, "features": list(range(24)), "variable": "output_token", "draws": 2}
        gates = {"dataset": rows, "params": {**params, "off_target": ELSEWHERE}}
        begun = tiller.evaluations.start("feature_gate", model=MODEL, **gates)["id"]
        awaited(tiller, begun, lambda _: len(bench.registry.notes.of(begun)) > 2)
    slowly.clear()
    with serving(settings) as (url, bench), Tiller(url) as tiller:
        job = tiller.jobs.wait(begun)
        assert any(line.endswith("found before") for line in job["log"])
        again = tiller.evaluations.start("feature_gate", model=MODEL, budget=UNDISTURBED, **gates)
        assert tiller.jobs.wait(again["id"])["result"]["report"] == job["result"]["report"]

        suites = {"suites": {"one": rows, "two": more}, "edits": ["small"]}
        suites |= {"params": {"steps": 1, "least": 4}, "budget": {"max_examples": 5}}
        cancelled = tiller.evaluations.start("edit_audit", model=MODEL, **suites)["id"]
        awaited(tiller, cancelled, lambda _: bench.registry.notes.of(cancelled))
        tiller.jobs.cancel(cancelled)
        while tiller.jobs.show(cancelled)["state"] != "cancelled":
            time.sleep(0.02)
        before = {name for note in bench.registry.notes.of(cancelled) for name in note["stages"]}
        begun = tiller.evaluations.start("edit_audit", model=MODEL, **suites)["id"]
        assert begun != cancelled
        noted, add = list[str](), Notes.add

        def counted(self, job, worker, note):
            noted.extend(note["stages"])
            add(self, job, worker, note)

        monkeypatch.setattr(Notes, "add", counted)
        job = tiller.jobs.wait(begun)
        assert before and not before & set(noted), "what was noted is not found again"
        suites |= {"budget": {"max_examples": 5, **UNDISTURBED}}
        again = tiller.evaluations.start("edit_audit", model=MODEL, **suites)
        whole = tiller.jobs.wait(again["id"])["result"]["report"]
        assert job["result"]["report"] == whole
