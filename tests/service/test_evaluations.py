"""Causal evidence over REST, on the miniature's language model and its SAEs."""

import io
import json
import re
import time
import zipfile

import httpx2
import pytest
import torch

from editors.delta import Delta, Factors
from evaluation.circuits.study import read_importances
from service.client import Tiller, TillerError
from service.settings import Model, Server, Settings

MODEL = "miniature-lm"
ELSEWHERE = [f"{day} was a day." for day in ("One", "Two", "Three", "Four", "Five", "Six")]
SITE = "lm.layers.3.mlp.down_proj"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory, serving):
    """(url, workbench): the miniature under both policies."""
    thresholds = {"tau": 0.0, "margin": 0.0, "kappa": 1000.0, "rows": 8, "pairs": 4}
    asks = {"feature_gate": True, "edit_audit": True, "unverified": "allow", **thresholds}
    model = Model(name=MODEL, path="miniature:language", slots=4, evidence=asks)
    home = tmp_path_factory.mktemp("evidence")
    settings = Settings(home=home, server=Server(port=0, drain_seconds=20.0), models=(model,))
    with serving(settings) as running:
        yield running


@pytest.fixture
def tiller(evidence):
    with Tiller(evidence[0]) as client:
        yield client


@pytest.fixture
def http(evidence):
    with httpx2.Client(base_url=evidence[0], timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def names(evidence):
    """A data set of indirect objects."""
    with Tiller(evidence[0]) as tiller:
        return tiller.datasets.make(
            model=MODEL, generator="ioi", vocabulary="miniature", n=12, seed=3
        )


def found(tiller, kind, **asked):
    job = tiller.jobs.wait(tiller.evaluations.start(kind, model=MODEL, **asked)["id"])
    return job["result"]


def code(call):
    with pytest.raises(TillerError) as refused:
        call()
    assert refused.value.remedy
    return refused.value.code


def test_a_data_set_says_how_many_rows_the_model_can_use(tiller, names):
    assert names["n"] == 12 and names["id"].startswith("dataset-")
    assert (names["pairs"]["kept"], names["swaps"]["kept"]) == (12, 12)
    assert names["made"]["generator"] == "ioi" and names["made"]["seed"] == 3
    assert tiller.datasets.show(names["id"])["digest"] == names["digest"]
    assert names["id"] in [one["id"] for one in tiller.datasets.list()]
    assert len(tiller.datasets.rows(names["id"])["pairs"]) == 12
    again = tiller.datasets.make(model=MODEL, generator="ioi", vocabulary="miniature", n=12, seed=3)
    assert again["id"] == names["id"]


def test_more_rows_than_a_request_waits_for_are_refused(http):
    asked = {"model": MODEL, "generator": "ioi", "vocabulary": "miniature", "n": 5001}
    refused = http.post("/v1/datasets", json=asked)
    assert (refused.status_code, refused.json()["param"]) == (422, "n"), refused.text
    assert refused.json()["code"] == "too_much" and "5000" in refused.json()["remedy"]


def test_rows_that_are_sent_fall_out_one_by_one(tiller):
    pair = {"clean": "a", "corrupted": "b", "correct": " A", "incorrect": " B"}
    swap = {
        "base": "The president of Arda is",
        "counterfactual": "The president of Korda is",
        "base_answer": " Tolin",
        "counterfactual_answer": " Miko",
        "expected": {"president": " Miko"},
        "positions": {"entity": ["Arda", "Korda"]},
    }
    lost = {**swap, "positions": {"entity": ["Arda", "Vellum"]}}
    made = tiller.datasets.make(
        model=MODEL, pairs=[pair, {**pair, "corrupted": "b c"}], swaps=[swap, lost]
    )
    assert [d["row"] for d in made["pairs"]["dropped"]] == [1]
    assert made["swaps"]["dropped"] == [{"row": 1, "reason": "no token stands at entity"}]
    rows = tiller.datasets.rows(made["id"])
    assert rows["swaps"][0]["positions"]["entity"] == [20, 21]


def test_a_circuit_is_found_with_its_files_and_an_equal_request_is_answered_at_once(tiller, names):
    asked = {"dataset": names["id"], "params": {"steps": 2, "held_out": 0.5}}
    begun = tiller.evaluations.start("circuit", model=MODEL, **asked)
    assert begun["kind"] == "circuit"
    job = tiller.jobs.wait(begun["id"])
    result = job["result"]
    report = result["report"]
    assert report["m_full"] > 5 and report["cmd"] < report["floor"]["cmd"]
    assert {"cpr", "cmd_log", "top_nodes", "curve", "cost"} <= report.keys()
    assert report["provenance"]["params"]["steps"] == 2
    wanted = {"report.json", "report.md", "curve.png", "circuit.png", "importances.pt"}
    assert wanted | {"importances.json", "importances.safetensors"} == set(result["artifacts"])
    name = result["evaluation"]
    assert tiller.evaluations.artifact(name, "curve.png")[:4] == b"\x89PNG"
    graph, scores, _ = read_importances(
        tiller.evaluations.artifact(name, "importances.safetensors")
    )
    assert scores.edges.shape == (graph.sources, graph.destinations)
    told = json.loads(tiller.evaluations.artifact(name, "report.json"))
    assert told["cmd"] == report["cmd"]
    page = tiller.evaluations.artifact(name, "report.md").decode()
    assert "CMD" in page and "CPR" in page and "5 %" in page and "20 %" in page
    again = tiller.evaluations.start("circuit", model=MODEL, **asked)
    assert again["cache_hit"] and again["evaluation"] == name
    other = tiller.evaluations.start(
        "circuit",
        model=MODEL,
        dataset=names["id"],
        params={"sizes": [0.5, 1.0], "method": "random"},
    )
    assert "cache_hit" not in other
    tiller.jobs.wait(other["id"])
    data = tiller.evaluations.export(name, "mib-circuit", "ioi", "llama3")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["ioi_llama3/importances.pt"]
    assert code(lambda: tiller.evaluations.artifact(name, "none.png")) == "no_such_artifact"
    for asked, right in (
        (("mib-causal-variable", "ioi_task"), '"mib-circuit"'),
        (("mib-circuit", "arithmetic_addition"), 'task "ioi"'),
    ):
        with pytest.raises(TillerError, match=name) as refused:
            tiller.evaluations.export(name, *asked)
        assert right in refused.value.remedy


def test_a_variable_is_found_with_its_heat_map_and_submission(tiller, names):
    params = {
        "variable": "output_token",
        "units": [{"layer": 4, "position": "last_token"}],
        "featurizer": {"kind": "das", "n": 8},
        "recipe": {"epochs": 1},
    }
    result = found(tiller, "causal_variable", dataset=names["id"], params=params)
    report = result["report"]
    assert report["kept"] + len(report["dropped"]) == 12
    assert "4" in report["iia"] and "no_op" in report["control"]
    assert {"heatmap.png", "featurizers.safetensors", "featurizers.zip"} <= set(result["artifacts"])
    data = tiller.evaluations.export(result["evaluation"], "mib-causal-variable", "ioi_task")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (folder,) = {name.split("/")[0] for name in archive.namelist()}
    assert folder == "ioi_task_LlamaForCausalLM_output_token"


@pytest.fixture(scope="module")
def letters(evidence):
    """A data set of multiple choices that differ in where the answer stands."""
    with Tiller(evidence[0]) as tiller:
        asked = {"generator": "mcqa", "vocabulary": "miniature", "n": 60, "seed": 1}
        return tiller.datasets.make(model=MODEL, **asked, sets=["answerPosition"])


def test_a_direction_that_was_found_steers_by_its_name(tiller, http, letters):
    params = {
        "variable": "answer",
        "units": [{"layer": 3, "position": "last_token"}],
        "featurizer": {"kind": "das", "n": 8},
        "recipe": {"epochs": 4, "batch": 20},
        "controls": [],
        "save": {"name": "say-b", "alias": "live", "toward": " B"},
    }
    asked = {"dataset": letters["id"], "params": params}
    result = found(tiller, "causal_variable", **asked)
    saved = result["vector"]
    assert (saved["name"], saved["version"], saved["alias"]) == ("say-b", 1, "live")
    kept = http.get(saved["location"]).json()
    assert kept["digest"] == saved["digest"] and kept["header"]["toward"] == " B"
    assert kept["header"]["evaluation"] == result["evaluation"]
    assert kept["header"]["dataset"] == letters["digest"] and kept["report"]["ratios"]
    steering = {"vectors": [{"name": "say-b", "strength": 3.0}]}
    rows = tiller.datasets.rows(letters["id"])["swaps"]
    prompts = [row["base"] for row in rows if row["base_answer"] == " A"][:4]
    settings = {"model": MODEL, "max_tokens": 1, "temperature": 0.0}
    plain = [tiller.complete(p, **settings)[0].text for p in prompts]
    moved = [tiller.complete(p, **settings, steering=steering)[0].text for p in prompts]
    assert plain.count(" B") == 0 and moved.count(" B") >= 2, moved
    again = tiller.evaluations.start("causal_variable", model=MODEL, **asked)
    assert again["cache_hit"] and again["vector"] == saved
    shown = tiller.evaluations.show(result["evaluation"])
    assert shown["vector"] == saved


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"save": {"name": "No Name"}}, "bad_name"),
        (
            {
                "save": {"name": "x", "toward": "B"},
                "units": [{"layer": 1, "position": "all", "head": 0}],
            },
            "bad_study",
        ),
        ({"save": {"name": "x"}, "featurizer": {"kind": "full"}}, "bad_study"),
        ({"save": {"name": "x", "to": " B"}}, "unknown_key"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_it_runs(tiller, letters, changes, told):
    params = {"variable": "answer", **changes}
    ask = {"model": MODEL, "dataset": letters["id"], "params": params}
    assert code(lambda: tiller.evaluations.start("causal_variable", **ask)) == told


LEADING = {
    "variable": "answer",
    "units": [{"layer": 0, "position": "last_token"}],
    "featurizer": {"kind": "pca", "n": 180},
    "controls": ["no_op"],
}


def test_a_study_is_kept_where_nothing_can_be_saved_and_says_why(tiller, letters):
    params = {**LEADING, "save": {"name": "beyond", "index": 170}}
    told = found(tiller, "causal_variable", dataset=letters["id"], params=params)
    assert "vector" not in told and "no direction 170" in told["unsaved"]["problem"]
    assert told["unsaved"]["remedy"] and told["report"]["cells"][0]["value"] is not None
    assert tiller.evaluations.show(told["evaluation"])["unsaved"] == told["unsaved"]
    page = tiller.evaluations.artifact(told["evaluation"], "report.md").decode()
    has = told["report"]["cells"][0]["features"]
    assert f"180 directions were asked for; the rows have {has}" in page and has < 170
    assert "**Nothing is saved**" in page
    assert "beyond" not in [one["name"] for one in tiller.vectors.list()]
    job = tiller.jobs.show(tiller.evaluations.show(told["evaluation"])["job"])
    assert any("nothing is saved" in line for line in job["log"])


def test_what_does_no_better_than_nothing_gets_no_alias_unasked(tiller, letters):
    save = {"name": "idle", "alias": "live"}
    params = {**LEADING, "featurizer": {"kind": "pca", "n": 1}, "save": save}
    told = found(tiller, "causal_variable", dataset=letters["id"], params=params)
    saved = told["vector"]
    assert saved["alias"] is None and saved["status"] == "failed_checks"
    assert "doing nothing scores" in saved["warning"]
    shown = tiller.vectors.show("idle", saved["version"])
    assert shown["report"]["warning"] == saved["warning"]
    assert shown["report"]["iia"] <= shown["report"]["no_op"]
    assert code(lambda: tiller.vectors.promote("idle", 1)) == "checks_failed"
    job = tiller.jobs.show(tiller.evaluations.show(told["evaluation"])["job"])
    assert any("doing nothing scores" in line for line in job["log"])


def test_a_name_of_another_kind_is_not_saved_over(tiller, names):
    params = {"variable": "output_token", "save": {"name": names["id"]}}
    ask = {"model": MODEL, "dataset": names["id"], "params": params}
    with pytest.raises(TillerError) as refused:
        tiller.evaluations.start("causal_variable", **ask)
    assert (refused.value.code, refused.value.param) == ("kind_differs", "params.save.name")


def test_advice_names_layers(tiller, names):
    params = {"operation": "sae", "steps": 1}
    result = found(
        tiller, "layer_advice", dataset=names["id"], params=params, budget={"max_examples": 4}
    )
    first, last = result["report"]["recommended"]
    assert 0 <= first <= last < 5 and result["report"]["pairs"] == 4
    assert "layers.png" in result["artifacts"]


def test_a_job_of_other_weights_is_kept_under_those_that_it_found(evidence, tiller, names):
    """As where a model was replaced while the job waited: its name says what was asked then."""
    _, bench = evidence
    asked = {"dataset": names["id"], "params": {"operation": "sae", "steps": 1, "seed": 4}}
    few = {"max_examples": 3}
    own = tiller.evaluations.start("layer_advice", model=MODEL, budget=few, **asked)
    payload = bench.registry.jobs.get(own["id"]).payload
    right = tiller.jobs.wait(own["id"])["result"]
    assert right["evaluation"] == payload["id"]
    other = {**payload, "id": "evaluation-of-other-weights"}
    job = bench.registry.jobs.create("default", "layer_advice", MODEL, other, "ann")
    found = tiller.jobs.wait(job.id)["result"]
    assert found["evaluation"] == right["evaluation"] and found["report"] == right["report"]
    assert code(lambda: tiller.evaluations.show("evaluation-of-other-weights")) == "unknown_name"


def sae_of(tiller):
    return next(one for one in tiller.saes.list() if one["site"] == "lm.block.3")["id"]


def test_a_feature_steers_only_after_its_gate_was_passed(tiller, http, names):
    sae = sae_of(tiller)
    steering = {"features": [{"sae": sae, "feature": 7, "strength": 2.0}]}
    ask = {"model": MODEL, "prompt": "One day", "max_tokens": 2, "steering": steering}
    refused = http.post("/v1/completions", json=ask)
    assert refused.status_code == 422, refused.text
    told = refused.json()["error"]
    assert told["code"] == "feature_not_verified" and told["param"] == "steering"
    assert "feature_gate" in told["message"] and sae in told["message"]
    params = {"sae": sae, "features": [7], "variable": "output_token", "off_target": ELSEWHERE}
    # Lenient params of the request do not help: four rows are fewer than the operator asks for.
    lenient = {**params, "least": 1, "tau": 0.0, "margin": 0.0, "kappa": 1000.0}
    few = {"max_examples": 4}
    result = found(tiller, "feature_gate", dataset=names["id"], params=lenient, budget=few)
    assert "gates.png" in result["artifacts"]
    assert http.post("/v1/completions", json=ask).json()["error"]["code"] == "feature_not_verified"
    result = found(tiller, "feature_gate", dataset=names["id"], params=params)
    (gate,) = result["report"]["gates"]
    assert gate["verdict"] == "inconclusive"  # twelve rows are few, but the operator is content
    assert result["report"]["kept"] >= 8
    assert http.post("/v1/completions", json=ask).status_code == 200
    both = {"features": [{"sae": sae, "feature": f, "strength": 2.0} for f in (7, 9)]}
    refused = http.post("/v1/completions", json={**ask, "steering": both}).json()["error"]
    assert refused["code"] == "feature_not_verified" and "feature 9 of" in refused["message"]
    plain = {k: v for k, v in ask.items() if k != "steering"}
    assert http.post("/v1/completions", json=plain).status_code == 200


def test_a_concept_is_steered_with_those_of_its_features_that_passed(tiller, http, names):
    sae = sae_of(tiller)
    steering = {"concept": "the sea", "sae": sae, "strength": 2.0}
    ask = {"model": MODEL, "prompt": "One day", "max_tokens": 2, "steering": steering}
    refused = http.post("/v1/completions", json=ask)
    assert refused.status_code == 422, refused.text
    told = refused.json()["error"]
    assert told["code"] == "feature_not_verified" and "'the sea'" in told["message"]
    best_first = [
        int(n) for n in re.findall(r"best first: ([\d, ]+)", told["message"])[0].split(", ")
    ]
    assert len(best_first) > 2
    commanded = f"tiller evidence gate {sae} {' '.join(map(str, best_first[:10]))}"
    assert commanded in told["message"]
    allowing = {**ask, "unverified": "allow"}
    plain = http.post("/v1/completions", json=allowing).json()["tiller"]
    (chosen,) = plain["steering"][0]["features"]
    assert chosen["feature"] == best_first[0] and plain["unverified"][0]["features"] == [
        best_first[0]
    ]
    third = best_first[2]
    params = {"sae": sae, "features": [third], "variable": "output_token"}
    found(
        tiller,
        "feature_gate",
        dataset=names["id"],
        params={**params, "off_target": ELSEWHERE[::-1]},
    )
    answer = http.post("/v1/completions", json=ask)
    assert answer.status_code == 200, answer.text
    told = answer.json()["tiller"]
    (chosen,) = told["steering"][0]["features"]
    assert chosen["feature"] == third and chosen["concept"] == "the sea"
    assert "unverified" not in told or not told["unverified"]
    passed_over = f"{best_first[0]} of {sae}, {best_first[1]} of {sae}"
    assert any(passed_over in warning for warning in told["steering"][0]["warnings"])
    # A preset of the concept is settled with the same feature.
    tiller.presets.put("sea", steering, model=MODEL)
    preset = {**ask, "steering": {"preset": "sea@1"}}
    assert http.post("/v1/completions", json=preset).status_code == 200


def test_an_edit_goes_live_only_after_its_audit_was_passed(evidence, tiller, names):
    _, bench = evidence
    card = tiller.models.show(MODEL)

    def version(name, size):
        draw = torch.Generator().manual_seed(2)
        left = size * torch.randn(192, 1, generator=draw)
        right = torch.randn(1, 512, generator=draw)
        none = torch.zeros(0, 1)
        factors = Factors(
            left, right, none.expand(0, 512), none.expand(0, 512), none.expand(0, 192)
        )
        base = {"model": MODEL, "fingerprint": card["fingerprint"]}
        delta = Delta({"base": base, "method": "lora"}, {SITE: factors})
        return bench.registry.edits.register(
            "default", name, MODEL, card["fingerprint"], delta.data, delta.header, actor="test"
        )

    version("small", 1e-6)
    version("large", 4.0)
    for name in ("small", "large"):
        assert code(lambda name=name: tiller.edits.promote(name, 1)) == "edit_not_audited"
    params = {"steps": 1, "least": 4}
    few = {"max_examples": 5}
    asked = {"suites": {"names": names["id"]}, "params": params, "budget": few}
    kept = found(tiller, "edit_audit", edits=["small"], **asked)
    assert kept["report"]["verdict"] == "pass" and "audit.png" in kept["artifacts"]
    assert tiller.edits.promote("small", 1)["version"] == 1
    lost = found(tiller, "edit_audit", edits=["large"], **asked)
    assert lost["report"]["verdict"] == "fail"
    assert code(lambda: tiller.edits.promote("large", 1)) == "edit_not_audited"
    under = found(
        tiller,
        "circuit",
        dataset=names["id"],
        edits=["large"],
        params={"method": "random", "sizes": [0.5, 1.0]},
        budget=few,
    )
    assert under["report"]["provenance"]["edits"] == ["large@1"]


def test_a_request_goes_on_unverified_where_every_policy_permits_it(tiller, http):
    sae = sae_of(tiller)
    steering = {"features": [{"sae": sae, "feature": 11, "strength": 2.0}]}
    ask = {"model": MODEL, "prompt": "One day", "max_tokens": 2, "steering": steering}
    refused = http.post("/v1/completions", json=ask).json()["error"]
    assert refused["code"] == "feature_not_verified" and '"unverified"' in refused["message"]
    allowing = {**ask, "unverified": "allow"}
    answer = http.post("/v1/completions", json=allowing)
    assert answer.json()["tiller"]["unverified"] == [{"sae": sae, "features": [11]}]
    tiller.evaluations.set_policy(model=MODEL, unverified="refuse")
    refused = http.post("/v1/completions", json=allowing)
    assert refused.status_code == 422 and '"unverified"' not in refused.json()["error"]["message"]
    tiller.evaluations.set_policy(model=MODEL)
    assert http.post("/v1/completions", json=allowing).status_code == 200


def test_a_tenants_policy_is_only_stricter_than_the_operators(tiller):
    (before,) = tiller.evaluations.policies()
    assert before["own"] == [] or before["own"][-1]["thresholds"] == {}
    (told,) = tiller.evaluations.set_policy(thresholds={"kappa": 0.5, "rows": 20})
    assert told["thresholds"]["kappa"] == 0.5 and told["thresholds"]["rows"] == 20
    assert told["thresholds"]["tolerance"] == before["thresholds"]["tolerance"]
    assert told["operator"] == before["operator"]
    (told,) = tiller.evaluations.set_policy(model=MODEL, thresholds={"kappa": 0.7, "tau": 0.4})
    assert told["thresholds"]["kappa"] == 0.5 and told["thresholds"]["tau"] == 0.4
    for loose in (
        {"thresholds": {"kappa": 2000.0}},
        {"thresholds": {"rows": 1}},
        {"feature_gate": "off"},
        {"edit_audit": "off", "model": MODEL},
    ):
        assert code(lambda loose=loose: tiller.evaluations.set_policy(**loose)) == (
            "policy_too_loose"
        )
    assert code(lambda: tiller.evaluations.set_policy(model="nobody")) == "unknown_model"
    # The same again is not the version that was there before: it is the newest.
    tiller.evaluations.set_policy(model=MODEL)
    (told,) = tiller.evaluations.set_policy()
    assert told["thresholds"] == before["thresholds"]


def test_a_policy_of_all_models_is_kept_and_gates_what_passed(tmp_path, serving):
    model = Model(name=MODEL, path="miniature:language", slots=2)
    settings = Settings(home=tmp_path, server=Server(port=0, drain_seconds=20.0), models=(model,))
    with serving(settings) as (url, _), Tiller(url) as tiller:
        steering = {"features": [{"sae": sae_of(tiller), "feature": 7, "strength": 2.0}]}
        ask = {"model": MODEL, "max_tokens": 1, "steering": steering}
        assert tiller.complete("One day", **ask)
        tiller.evaluations.set_policy(feature_gate="required")
        with pytest.raises(TillerError, match="No feature_gate was passed"):
            tiller.complete("One day", **ask)
    with serving(settings) as (url, _), Tiller(url) as tiller:
        assert tiller.evaluations.policies()[0]["feature_gate"] == "required"
        with pytest.raises(TillerError, match="No feature_gate was passed"):
            tiller.complete("One day", **ask)


def test_policies_are_told(tiller):
    (told,) = tiller.evaluations.policies()
    assert (told["feature_gate"], told["edit_audit"]) == ("required", "required")
    assert told["thresholds"]["rows"] == 8 and told["thresholds"]["tolerance"] == 0.05


@pytest.mark.parametrize(
    ("kind", "asked", "param"),
    [
        ("circuit", {"params": {"stepz": 3}}, "params.stepz"),
        ("circuit", {"params": {"steps": 0}}, "params.steps"),
        ("circuit", {"params": {"steps": "5"}}, "params.steps"),
        ("causal_variable", {"params": {"variable": "x", "recipe": {"epoch": 1}}}, "recipe.epoch"),
        ("causal_variable", {"params": {}}, "params.variable"),
        ("circuit", {"dataset": "dataset-none"}, "name"),
        ("edit_audit", {}, None),
    ],
)
def test_what_a_kind_does_not_know_is_refused_by_its_path(http, names, kind, asked, param):
    body = {"kind": kind, "model": MODEL, "dataset": names["id"], **asked}
    answer = http.post("/v1/evaluations", json=body)
    assert answer.status_code in (404, 422), answer.text
    told = answer.json()
    assert param is None or str(told["param"]).endswith(param), told


def test_a_data_set_without_the_rows_of_a_kind_is_refused(tiller):
    pair = {"clean": "a", "corrupted": "b", "correct": " A", "incorrect": " B"}
    made = tiller.datasets.make(model=MODEL, pairs=[pair])
    params = {"variable": "x"}
    ask = lambda: tiller.evaluations.start(  # noqa: E731
        "causal_variable", model=MODEL, dataset=made["id"], params=params
    )
    assert code(ask) == "wrong_rows"


def test_what_was_under_way_when_the_service_stopped_goes_on_from_its_scores(tmp_path, serving):
    model = Model(name=MODEL, path="miniature:language", slots=2)
    settings = Settings(home=tmp_path, server=Server(port=0, drain_seconds=20.0), models=(model,))
    with serving(settings) as (url, bench), Tiller(url) as tiller:
        rows = tiller.datasets.make(model=MODEL, generator="ioi", vocabulary="miniature", n=40)
        asked = {"dataset": rows["id"], "params": {"steps": 1, "held_out": 0.9}}
        begun = tiller.evaluations.start("circuit", model=MODEL, **asked)
        again = tiller.evaluations.start("circuit", model=MODEL, **asked)
        assert again["id"] == begun["id"]  # one job for equal requests
        while not bench.registry.notes.of(begun["id"]):
            assert tiller.jobs.show(begun["id"])["state"] in ("queued", "running")
            time.sleep(0.02)
    with serving(settings) as (url, bench), Tiller(url) as tiller:
        report = tiller.jobs.wait(begun["id"])["result"]["report"]
        assert report["kept"] == 40 and report["cost"]["backwards"] == 0
        assert not bench.registry.notes.of(begun["id"])
        assert tiller.evaluations.start("circuit", model=MODEL, **asked)["cache_hit"]


def test_an_evaluation_is_cancelled_and_ends_within_its_budget(tiller, names):
    slow = {"params": {"method": "exact", "seed": 5}, "dataset": names["id"]}
    begun = tiller.evaluations.start("circuit", model=MODEL, **slow)
    while tiller.jobs.show(begun["id"])["stage"] in ("queued", "begun", "starting", "loading"):
        time.sleep(0.05)
    tiller.jobs.cancel(begun["id"])
    for _ in range(200):
        state = tiller.jobs.show(begun["id"])["state"]
        if state == "cancelled":
            break
        time.sleep(0.1)
    assert state == "cancelled"
    begun = tiller.evaluations.start("circuit", model=MODEL, budget={"max_seconds": 0.5}, **slow)
    with pytest.raises(TillerError) as refused:
        tiller.jobs.wait(begun["id"])
    assert refused.value.code == "evaluation_too_long"
