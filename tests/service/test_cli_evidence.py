"""`tiller evidence` against a running service."""

import re

import pytest
from typer.testing import CliRunner

from service.cli_evidence import METHODS, _params, app
from service.client import Tiller
from service.settings import Model, Server, Settings

MODEL = "miniature-lm"


@pytest.fixture(scope="module")
def url(tmp_path_factory, serving):
    model = Model(name=MODEL, path="miniature:language", slots=4)
    home = tmp_path_factory.mktemp("evidence")
    settings = Settings(home=home, server=Server(port=0, drain_seconds=20.0), models=(model,))
    with serving(settings) as (url, _):
        yield url


def run(url, *words):
    done = CliRunner().invoke(app, [*words, "--url", url])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_a_circuit_is_printed_and_written(url, tmp_path):
    words = ("circuit", "--task", "ioi", "--method", "eap", "-n", "8", "-o", str(tmp_path))
    told = run(url, *words)
    assert "CMD (0 is best)" in told and "CPR (unbounded)" in told and "evaluation-" in told
    assert {"curve.png", "report.json", "importances.pt"} <= {f.name for f in tmp_path.iterdir()}
    found = re.findall(r"evaluation-[0-9a-f]{24}", told)
    assert re.findall(r"evaluation-[0-9a-f]{24}", run(url, *words[:-2])) == found  # found before


def test_a_variable_advice_and_a_gate_are_printed(url):
    rows = ("--task", "mcqa", "-n", "6")
    told = run(url, "variable", "answer", *rows, "--featurizer", "full", "-p", "layers=[4]")
    assert "iia by set" in told
    kept = ("--featurizer", "full", "-p", "layers=[4]", "--save", "leading@live", "--toward", " B")
    told = run(url, "variable", "answer", "--task", "mcqa", "-n", "12", *kept)
    assert "leading@1" in told and "doing nothing" not in told
    with Tiller(url) as tiller:
        assert tiller.vectors.show("leading")["aliases"][0]["alias"] == "live"
    assert "Recommended by `last`" in run(
        url, "advice", "sae", "--task", "ioi", "-n", "4", "-p", "steps=1"
    )
    with Tiller(url) as tiller:
        sae = next(one["id"] for one in tiller.saes.list() if one["site"] == "lm.block.4")
    told = run(url, "gate", sae, "5", "--variable", "answer", *rows, "-p", "draws=1")
    assert "inconclusive" in told


def test_lists_are_read_in_80_columns(url):
    run(url, "circuit", "--task", "ioi", "--method", "eap", "-n", "8")
    narrow = {"COLUMNS": "80"}
    for words in (["list", "--kind", "circuit", "--model", MODEL], ["datasets"]):
        done = CliRunner().invoke(app, [*words, "--url", url], env=narrow)
        assert done.exit_code == 0 and max(map(len, done.output.splitlines())) <= 80
        assert re.search(r"(evaluation|dataset)-[0-9a-f]{20}", done.output), done.output
    listed = CliRunner().invoke(app, ["list", "--kind", "circuit", "--url", url], env=narrow)
    assert f"circuit of {MODEL}, ioi" in listed.output and "cmd 0." in listed.output
    assert "causal_variable" not in listed.output


def test_what_is_missing_is_wrong_usage(url):
    done = CliRunner().invoke(app, ["circuit", "--url", url])
    assert done.exit_code == 2 and "--task" in done.output


def test_params_are_json_or_text():
    assert _params(["steps=3", "level=node", "layers=[1]"]) == {
        "steps": 3,
        "level": "node",
        "layers": [1],
    }
    assert METHODS["eap-ig"] == "eap-ig-inputs"
