"""What an evaluation is refused at once, in words that name the key and what there is."""

import httpx2
import pytest
from typer.testing import CliRunner

from service.cli_evidence import app
from service.client import Tiller, TillerError
from service.evidence_kinds import KINDS
from service.schema_evaluations import settings_of
from service.settings import Model, Server, Settings

WRITES, DRAWS = "miniature-lm", "draws"


@pytest.fixture(scope="module")
def url(tmp_path_factory, serving, tiny_sd_folder):
    models = (
        Model(name=WRITES, path="miniature:language", slots=2),
        Model(name=DRAWS, path=str(tiny_sd_folder), slots=1),
    )
    home = tmp_path_factory.mktemp("refusals")
    settings = Settings(home=home, server=Server(port=0, drain_seconds=20.0), models=models)
    with serving(settings) as (url, _):
        yield url


@pytest.fixture(scope="module")
def http(url):
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def names(url):
    with Tiller(url) as tiller:
        asked = {"generator": "ioi", "vocabulary": "miniature", "n": 4}
        return {
            model: tiller.datasets.make(model=model, **asked)["id"] for model in (WRITES, DRAWS)
        }


@pytest.fixture(scope="module")
def sae(url):
    with Tiller(url) as tiller:
        return tiller.saes.list()[0]["id"]


def refused(http, body, path="/v1/evaluations"):
    content = body if isinstance(body, str) else None
    kind = {"Content-Type": "application/json"}
    answer = (
        http.post(path, content=content, headers=kind) if content else http.post(path, json=body)
    )
    assert answer.status_code in (404, 422), answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("kind", "params", "key"),
    [
        ("circuit", '{"margin": 1e400}', "params.margin"),
        ("circuit", '{"sampling": {"price": NaN}}', "params.sampling.price"),
        ("circuit", '{"learning": {"rate": 1e999}}', "params.learning.rate"),
        ("circuit", '{"sizes": [0.5, -Infinity]}', "params.sizes.1"),
        ("causal_variable", '{"variable": "x", "recipe": {"rate": NaN}}', "params.recipe.rate"),
    ],
)
def test_numbers_that_are_none_are_refused_by_their_key(http, names, kind, params, key):
    body = f'{{"kind": "{kind}", "model": "{WRITES}", "dataset": "{names[WRITES]}", '
    told = refused(http, body + f'"params": {params}}}')
    assert (told["status"], told["param"]) == (422, key), told


def test_the_sdk_and_the_command_say_so_before_they_ask(url, names):
    asked = {"dataset": names[WRITES], "params": {"margin": float("inf")}}
    with Tiller(url) as tiller, pytest.raises(TillerError, match=r"params.margin is no finite"):
        tiller.evaluations.start("circuit", model=WRITES, **asked)
    words = ["circuit", "--task", "ioi", "-p", "margin=Infinity", "--url", url]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "margin is no finite number" in done.output


@pytest.mark.parametrize("kind", ["circuit", "causal_variable", "feature_gate"])
def test_a_model_that_draws_is_refused_what_needs_one_that_writes(http, names, kind):
    params = {
        "circuit": {},
        "causal_variable": {"variable": "output_token"},
        "feature_gate": {"variable": "output_token", "sae": "x", "features": [1]},
    }[kind]
    body = {"kind": kind, "model": DRAWS, "dataset": names[DRAWS], "params": params}
    told = refused(http, body)
    assert (told["status"], told["code"]) == (422, "method_not_applicable")
    assert "text-to-image" in told["detail"] and told["param"] == "model"
    assert "text encoders" in told["detail"] and "layer_advice" in told["remedy"]


@pytest.mark.parametrize(
    ("model", "operation", "fits"),
    [(DRAWS, "sae", "refact"), (WRITES, "refact", "sae"), (WRITES, "backpatch", "sae")],
)
def test_advice_on_an_operation_that_does_not_fit_is_refused(http, names, model, operation, fits):
    params = {"operation": operation}
    body = {"kind": "layer_advice", "model": model, "dataset": names[model], "params": params}
    told = refused(http, body)
    assert (told["code"], told["param"]) == ("method_not_applicable", "params.operation")
    assert fits in told["remedy"]


@pytest.mark.parametrize(
    ("params", "key", "there"),
    [
        ({"variable": "answer"}, "params.variable", "output_position, output_token"),
        ({"layers": [99]}, "params.layers.0", "layers 0 to 5"),
        ({"positions": ["s3"]}, "params.positions.0", "last_token, s2"),
        ({"units": [{"layer": 9, "position": "s2"}]}, "params.units.0", "layers 0 to 5"),
        ({"units": [{"layer": 1, "head": 64, "position": "s2"}]}, "params.units.0", "heads 0 to"),
        ({"featurizer": {"kind": "sae", "saes": ["none"]}}, "params.featurizer.saes.0", "-topk"),
    ],
)
def test_a_variable_and_its_places_are_looked_up_at_once(http, names, params, key, there):
    params = {"variable": "output_token", **params}
    body = {"kind": "causal_variable", "model": WRITES, "dataset": names[WRITES], "params": params}
    told = refused(http, body)
    assert told["param"] == key and there in told["detail"] + told["remedy"], told


def test_a_gates_sae_and_features_are_looked_up_at_once(http, names, sae):
    params = {"variable": "output_token", "sae": sae, "features": [10**6]}
    body = {"kind": "feature_gate", "model": WRITES, "dataset": names[WRITES], "params": params}
    assert refused(http, body)["code"] == "unknown_feature"
    told = refused(http, {**body, "params": {**params, "sae": "none"}})
    assert (told["code"], told["param"]) == ("unknown_dictionary", "params.sae")
    assert sae in told["remedy"]


def test_a_data_set_of_which_no_row_can_be_used_is_refused_with_the_reason(http):
    pair = {"clean": "a", "corrupted": "b c", "correct": " A", "incorrect": " B"}
    made = http.post("/v1/datasets", json={"model": WRITES, "pairs": [pair, pair]}).json()
    assert made["pairs"]["kept"] == 0
    told = refused(http, {"kind": "circuit", "model": WRITES, "dataset": made["id"]})
    assert told["code"] == "nothing_kept" and "0 of 2 pairs" in told["detail"]
    assert made["pairs"]["dropped"][0]["reason"] in told["detail"]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("datasets", {"model": WRITES}, "send rows (pairs, swaps or pictures)"),
        ("datasets", {"generator": "ioi", "pairs": "one"}, "send rows (pairs) or name a generator"),
        ("evaluations", {"kind": "circuit"}, "kind circuit needs dataset"),
        ("evaluations", {"kind": "circuit", "suites": {"a": "b"}}, "suites are for edit_audit"),
        ("evaluations", {"kind": "edit_audit", "suites": {"a": "b"}}, "edit_audit needs edits"),
        ("evaluations", {"kind": "edit_audit", "edits": ["a"]}, "edit_audit needs suites"),
        ("evaluations", {"kind": "edit_audit", "dataset": "a"}, "not dataset"),
    ],
)
def test_keys_that_do_not_go_together_are_named(http, path, body, named):
    pair = {"clean": "a", "corrupted": "b", "correct": " A", "incorrect": " B"}
    body = {"model": WRITES, **body} | ({"pairs": [pair]} if "pairs" in body else {})
    told = refused(http, body, f"/v1/{path}")
    assert named.lower() in told["detail"].lower() and "missing or" not in told["detail"]


@pytest.mark.parametrize(
    ("short", "full"), [("eap-ig", "eap-ig-inputs"), ("ifr", "information-flow-routes")]
)
def test_methods_have_short_names(short, full):
    assert settings_of(KINDS["circuit"].settings, {"method": short}).method == full


def asked(kind, dataset, params, **more):
    return {"kind": kind, "model": WRITES, "dataset": dataset, "params": params, **more}


@pytest.mark.parametrize(
    ("params", "key", "there"),
    [
        ({"save": {"name": "x", "toward": " Nobody"}}, "params.save.toward", "the rows expect ' "),
        ({"toward": [" Nobody"]}, "params.toward.0", "the rows expect ' "),
        ({"save": {"name": "x", "index": 16}}, "params.save.index", "directions 0 to 15"),
        (
            {"featurizer": {"kind": "pca", "n": 3}, "save": {"name": "x", "index": 3}},
            "params.save.index",
            "directions 0 to 2",
        ),
        ({"save": {"name": "No Name"}}, "params.save.name", "is not a name for a vector"),
        ({"save": {"name": "x", "alias": "No"}}, "params.save.alias", "an alias"),
        ({"featurizer": {"kind": "das", "n": 10**4}}, "params.featurizer.n", "width 192"),
        ({"featurizer": {"kind": "sae"}}, "params.featurizer.saes", "at least one SAE"),
        ({"units": []}, "params.units", "units is empty"),
        ({"units": [{"layer": 1, "position": "s2"}], "layers": [1]}, "params.layers", "sweep"),
        ({"featurizer": {"kind": "full", "n": 2}}, "params.featurizer.n", "das"),
        ({"featurizer": {"kind": "pca"}, "recipe": {"epochs": 2}}, "params.recipe", "dbm"),
        ({"featurizer": {"kind": "das", "saes": ["x"]}}, "params.featurizer.saes", "dbm_sae"),
        (
            {"save": {"name": "x", "toward": " Ann", "index": 1}},
            "params.save.index",
            "mean move of the swaps",
        ),
    ],
)
def test_what_a_study_cannot_come_to_is_refused_by_its_param(http, names, params, key, there):
    body = asked("causal_variable", names[WRITES], {"variable": "output_token", **params})
    told = refused(http, body)
    assert told["param"] == key and there in told["detail"] + told["remedy"], told


@pytest.mark.parametrize(
    ("kind", "params", "key"),
    [
        ("circuit", {"sampling": {"price": 0.1}}, "params.sampling"),
        ("circuit", {"learning": {"steps": 2}}, "params.learning"),
        ("circuit", {"parity": ["edge-counts"]}, "params.parity"),
        ("layer_advice", {"operation": "sae", "target": 2}, "params.target"),
        ("layer_advice", {"operation": "sae", "answers": "first"}, "params.answers"),
    ],
)
def test_what_other_settings_read_is_refused_by_its_param(http, names, kind, params, key):
    assert refused(http, asked(kind, names[WRITES], params))["param"] == key


def test_an_sae_stands_at_a_layer_that_is_looked_at_and_alone(http, url, names):
    with Tiller(url) as tiller:
        saes = {one["id"]: one["site"] for one in tiller.saes.list()}
    params = {"variable": "output_token"}
    name, site = next(iter(saes.items()))
    other = 0 if site != "lm.block.0" else 1
    featurizer = {"kind": "sae", "saes": [name]}
    away = {**params, "layers": [other], "featurizer": featurizer}
    told = refused(http, asked("causal_variable", names[WRITES], away))
    assert told["param"] == "params.featurizer.saes.0" and "reads layer" in told["detail"]
    twice = {**params, "featurizer": {"kind": "sae", "saes": [name, name]}}
    told = refused(http, asked("causal_variable", names[WRITES], twice))
    assert told["param"] == "params.featurizer.saes.1" and f"both read {site}" in told["detail"]


TEXTS = [f"{day} was a day." for day in ("One", "Two", "Three", "Four", "Five", "Six")]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"off_target": [""]}, "params.off_target.0"),
        ({"off_target": [*TEXTS, " \n"]}, "params.off_target.6"),
        ({"off_target": TEXTS[:5]}, "params.off_target"),
        ({"off_target": TEXTS[:1] * 6}, "params.off_target"),
        ({"features": [1, 2, 1]}, "params.features"),
    ],
)
def test_a_gate_is_refused_texts_of_which_nothing_can_be_told(http, names, sae, changes, key):
    params = {"variable": "output_token", "sae": sae, "features": [1], **changes}
    told = refused(http, asked("feature_gate", names[WRITES], params))
    assert (told["code"], told["param"]) == ("bad_study", key)


def test_too_few_rows_are_told_before_a_job_begins(http, names):
    told = refused(http, asked("circuit", names[WRITES], {}, budget={"max_examples": 3}))
    assert told["code"] == "too_few_pairs"
    params = {"variable": "output_token"}
    few = asked("causal_variable", names[WRITES], params, budget={"max_examples": 1})
    assert refused(http, few)["code"] == "nothing_kept"


def test_rows_of_another_model_are_counted_in_the_tokens_of_this_one(http):
    pair = {"clean": "a", "corrupted": "b c", "correct": " A", "incorrect": " B"}
    bodies = [{"model": model, "pairs": [pair, pair]} for model in (DRAWS, WRITES)]
    drawn, written = (http.post("/v1/datasets", json=body).json() for body in bodies)
    assert drawn["id"] != written["id"] and drawn["digest"] == written["digest"]
    assert "pairs" not in drawn and written["pairs"]["kept"] == 0
    told = refused(http, asked("circuit", drawn["id"], {}))
    assert told["code"] == "nothing_kept" and "0 of 2 pairs" in told["detail"]


def test_policies_have_bounds_and_fit_their_model(http):
    told = refused(http, {"model": DRAWS, "feature_gate": "required"}, "/v1/policies")
    assert (told["code"], told["param"]) == ("method_not_applicable", "feature_gate")
    for key in ("rows", "pairs"):
        told = refused(http, {"thresholds": {key: 10**18}}, "/v1/policies")
        assert told["param"] == f"thresholds.{key}"


def test_lists_are_picked_by_model_and_bad_cursors_are_told(http, names):
    listed = http.get("/v1/datasets", params={"model": DRAWS}).json()["data"]
    assert names[DRAWS] in [one["id"] for one in listed]
    assert {one["model"] for one in listed} == {DRAWS}
    times = [one["created_at"] for one in http.get("/v1/datasets").json()["data"]]
    assert times == sorted(times, reverse=True)
    for path in ("datasets", "evaluations"):
        told = http.get(f"/v1/{path}", params={"after": "nothing"})
        assert (told.status_code, told.json()["code"]) == (422, "bad_page")
    assert http.get("/v1/evaluations", params={"kind": "x"}).status_code == 422


def test_the_command_says_what_is_wrong_before_it_asks(url, tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for words, told in (
        (("circuit", "--task", "chess"), "there is no task 'chess'"),
        (("circuit", "--task", "ioi", "--dataset", "dataset-x"), "leave --task out"),
        (("circuit", "--task", "ioi", "-o", str(file)), "cannot be a folder"),
        (("audit", "polite", "--suite", "letters"), "is not name=task"),
        (("export", "evaluation-x", "--task", "ioi", "-o", str(tmp_path)), "is a folder"),
        (("export", "e", "--task", "ioi", "-o", f"{tmp_path}/no/x.zip"), "there is no folder"),
    ):
        done = CliRunner().invoke(app, [*words, "--url", url], env={"COLUMNS": "200"})
        assert done.exit_code == 2 and told in " ".join(done.output.split()), done.output
