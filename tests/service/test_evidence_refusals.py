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
