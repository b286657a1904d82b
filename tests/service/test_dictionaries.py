"""Scores are taken once, whoever asks, and survive the death of whoever takes them."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
import torch

from models.errors import Refusal
from models.loading import load
from service import dictionaries as module
from service.deployment import RemoteHost
from service.dictionaries import Dictionaries
from service.errors import LensUnderWay
from service.questions import FindFeatures, ShowSae
from service.registry import open_registry
from service.registry.records import Measure
from service.settings import Jobs, Model
from steerers.errors import UnknownDictionary, UnknownFeature
from steerers.lens import lens
from steerers.output_score import Scorer
from steerers.readers import read
from steerers.score import PAPER, REFERENCE, ScoreSettings

ROOT = Path(__file__).parents[2]
SAE = "toy"


class Owner:
    """The thread that owns the model; counts the steps that it makes."""

    def __init__(self):
        self.lock, self.steps, self.threads = threading.Lock(), 0, []
        self.go = threading.Event()
        self.go.set()

    def background(self, work, on_item, on_done, on_error):
        def drain():
            with self.lock, torch.inference_mode():
                try:
                    while True:
                        self.go.wait()
                        on_item(next(work))
                        self.steps += 1
                except StopIteration as over:
                    on_done(over.value)
                except Exception as error:  # noqa: BLE001
                    on_error(error)

        thread = threading.Thread(target=drain)
        self.threads.append(thread)
        thread.start()
        return self

    def cancel(self):
        pass


@pytest.fixture(scope="module")
def hosted(tiny_lm_folder):
    return load("tiny-lm", tiny_lm_folder)


@pytest.fixture(scope="module")
def dictionary(tiny_sae_folder):
    return read(tiny_sae_folder, id=SAE)


@pytest.fixture
def registry(tmp_path):
    opened = open_registry(f"sqlite:///{tmp_path}/index.sqlite", str(tmp_path / "blobs"))
    yield opened
    opened.close()


@pytest.fixture
def owner():
    made = Owner()
    yield made
    made.go.set()
    for thread in made.threads:
        thread.join()


@pytest.fixture
def make(hosted, dictionary, registry, owner, tmp_path):
    """A function: the dictionaries of a host, each time as after a restart."""

    def again(**more):
        return Dictionaries(
            hosted,
            [dictionary],
            registry=registry,
            background=owner.background,
            folder=tmp_path / "lenses",
            **more,
        )

    return again


def test_scores_are_the_scorers_and_are_taken_once(make, hosted, dictionary, owner):
    known = make()
    wanted = {s.feature: s for s in Scorer(hosted=hosted, dictionary=dictionary).score([1, 5])}
    assert known.scores(dictionary, [5, 1, 5]) == wanted
    steps = owner.steps
    assert make().scores(dictionary, [1, 5]) == wanted  # after a restart, from the registry
    assert owner.steps == steps
    assert known.stored(dictionary, [1, 2]).keys() == {1}


def test_other_settings_and_weights_have_scores_of_their_own(make, dictionary, registry, hosted):
    known = make()
    known.scores(dictionary, [1])
    assert known.stored(dictionary, [1], PAPER) == {}
    measure = known.measure(dictionary, REFERENCE)
    assert measure == known.measure(dictionary, ScoreSettings()) != known.measure(dictionary, PAPER)
    assert measure.sae == dictionary.digest
    assert measure.fingerprint == hosted.fingerprint
    other = Measure(fingerprint="e" * 64, sae=measure.sae, settings=measure.settings)
    assert registry.scores.get(other, [1]) == {}


def test_who_asks_at_the_same_time_shares_the_work(make, dictionary, owner):
    known, found = make(), []
    owner.go.clear()
    asking = [
        threading.Thread(target=lambda: found.append(known.scores(dictionary, [1, 2, 3])))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    time.sleep(0.1)
    owner.go.set()
    for thread in asking:
        thread.join()
    assert owner.steps == 1
    assert all(one == found[0] for one in found)
    assert set(found[0]) == {1, 2, 3}


def test_a_dictionary_is_known_by_id_and_by_digest(make, dictionary):
    known = make()
    assert known.find(SAE) is dictionary
    assert known.find(f"sha256:{dictionary.digest}") is dictionary
    with pytest.raises(UnknownDictionary):
        known.find("other")
    with pytest.raises(UnknownFeature):
        known.scores(dictionary, [dictionary.features])


def test_a_lens_is_computed_once_and_read_from_disk_after_a_restart(
    make, hosted, dictionary, owner
):
    plain = lens(hosted, dictionary, range(dictionary.features))
    first = make().lens(dictionary)
    assert torch.equal(first.tokens.ids, plain.ids)
    token = int(plain.ids[7, 3])
    assert (7, 3) in first.index.find(token)
    steps = owner.steps
    again = make()
    assert again.has_lens(dictionary)
    assert torch.equal(again.lens(dictionary).tokens.ids, plain.ids)
    assert torch.equal(again.lens_tokens(dictionary, [9, 2]).ids, plain.ids[[9, 2]])
    assert owner.steps == steps


def test_a_damaged_lens_is_computed_again(make, dictionary, tmp_path, owner):
    make().lens(dictionary)
    (file,) = (tmp_path / "lenses").iterdir()
    file.write_bytes(b"half")
    steps = owner.steps
    again = make()
    assert not again.has_lens(dictionary)
    again.lens(dictionary)
    assert owner.steps > steps
    assert make().has_lens(dictionary)


def test_who_waits_too_long_for_a_lens_is_told_and_it_goes_on(make, dictionary, owner):
    known = make(wait_seconds=0.05)
    owner.go.clear()
    for _ in range(2):
        with pytest.raises(LensUnderWay):
            known.lens(dictionary)
    assert len(owner.threads) == 1
    owner.go.set()
    owner.threads[0].join()
    assert known.lens(dictionary).tokens.ids.shape[0] == dictionary.features


def over(what):
    return pickle.loads(pickle.dumps(what))  # noqa: S301 - our own


class Across:
    """A host behind a process border: what goes over is pickled, refusals come back as values."""

    def __init__(self, host):
        self.host, self.ask = host, SimpleNamespace(remote=self.asked)

    async def asked(self, method, question):
        try:
            told = await getattr(self.host, method)(over(question))
        except Refusal as refusal:
            told = refusal
        return over(told)


def test_questions_and_answers_cross_a_process_border(speaker):
    _, bench = speaker
    local = bench.hosts["tiny-lm"]
    remote = RemoteHost(Model(name="tiny-lm", path="/nowhere"), Across(local.ready))
    asked = FindFeatures(tenant="default", sae=SAE, concept="king", least=0.0)

    async def main():
        assert await remote.answer(asked) == await local.answer(asked)
        with pytest.raises(UnknownDictionary):
            await remote.answer(ShowSae(tenant="default", sae="other"))

    asyncio.run(main())


DOOMED = """
import sys, time
from service import dictionaries
from service.language_host import LanguageHost
from service.registry import open_registry
from service.settings import Settings

dictionaries.BATCH = 4
keep = dictionaries.Dictionaries.keep

def slowly(self, *told):
    keep(self, *told)
    print("kept", flush=True)
    time.sleep(60)

dictionaries.Dictionaries.keep = slowly
settings = Settings.model_validate_json(sys.argv[1])
host = LanguageHost(
    settings.models[0], settings, open_registry(settings.index_url, settings.blobs_url)
)
host.start()
time.sleep(60)
"""


def test_a_killed_job_is_taken_up_where_it_was_lost(speaker_settings_for, serving, monkeypatch):
    settings = speaker_settings_for(jobs=Jobs(lease_seconds=1.0))
    opened = open_registry(settings.index_url, settings.blobs_url)
    payload = {"sae": SAE, "features": None, "settings": {"prompt": "the king of"}}
    job = opened.jobs.create("default", "score", "tiny-lm", payload, "local")
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", DOOMED, settings.model_dump_json()],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as doomed:
        assert doomed.stdout
        assert doomed.stdout.readline() == b"kept\n"
        doomed.send_signal(signal.SIGKILL)
    assert opened.jobs.get(job.id).state == "running"
    opened.close()

    scored = []
    scoring = Dictionaries.scoring

    def counted(self, dictionary, features, *told):
        scored.extend(features)
        return scoring(self, dictionary, features, *told)

    monkeypatch.setattr(module.Dictionaries, "scoring", counted)
    with serving(settings) as (url, _):
        told = httpx2.get(f"{url}/v1/jobs/{job.id}", headers={"Prefer": "wait=60"}, timeout=90)
    assert told.json()["state"] == "succeeded", told.text
    result = told.json()["result"]
    assert result["skipped"] == 4
    assert result["scored"] == len(scored) == 44
    assert result["coverage"]["scored"] == 48
    assert told.json()["attempts"] == 2


def test_where_the_lens_is_there_scores_take_their_tokens_from_it(
    make, hosted, dictionary, monkeypatch
):
    wanted = {s.feature: s for s in Scorer(hosted=hosted, dictionary=dictionary).score([1, 5])}
    known = make()
    assert known.known_lens(dictionary) is None
    known.lens(dictionary)
    monkeypatch.setattr("steerers.output_score.lens", None)  # whoever calls it breaks
    assert known.scores(dictionary, [5, 1]) == wanted
