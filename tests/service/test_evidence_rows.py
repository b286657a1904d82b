"""Rows of one's own and rows as MIB publishes them, its recipes and folders: sent and typed."""

import io
import json
import random
import zipfile

import httpx2
import pytest
from typer.testing import CliRunner

from evaluation.behaviours.public import SUFFIX
from service.cli_evidence import app
from service.client import Tiller, TillerError
from service.settings import Model, Server, Settings
from service.vocabularies import miniature

MODEL = "miniature-lm"
HEADS = [{"layer": layer, "head": head, "position": "all"} for layer, head in ((3, 0), (4, 1))]


@pytest.fixture(scope="module")
def url(tmp_path_factory, serving):
    model = Model(name=MODEL, path="miniature:language", slots=2)
    home = tmp_path_factory.mktemp("rows")
    settings = Settings(home=home, server=Server(port=0, drain_seconds=20.0), models=(model,))
    with serving(settings) as (url, _):
        yield url


@pytest.fixture(scope="module")
def tiller(url):
    with Tiller(url) as client:
        yield client


@pytest.fixture(scope="module")
def published():
    """Indirect objects in the layout of the public data set."""
    behaviour = miniature().behaviours()["ioi"]
    found, draw = [], random.Random(5)  # noqa: S311
    for row in behaviour.rows(16, 5, ["s2_io_flip"]):
        told = behaviour.causal.run(row.base)
        names = {"indirect_object": told["answer"].strip(), "subject": told["c"]}
        others = {
            name + SUFFIX: {"prompt": behaviour.causal.run(alter(row.base, draw))["prompt"]}
            for name, alter in behaviour.sets.items()
        }
        found.append({"prompt": told["prompt"], "metadata": names, **others})
    return found


def found(tiller, kind, **asked):
    begun = tiller.evaluations.start(kind, model=MODEL, **asked)
    return tiller.jobs.wait(begun["id"])["result"]


def test_published_rows_become_pairs_and_interchanges(tiller, published):
    odd = {"prompt": "x", "metadata": published[0]["metadata"]}
    made = tiller.datasets.make(model=MODEL, task="ioi", rows=[*published, odd])
    n = len(published)
    assert made["pairs"]["kept"] == n and made["swaps"]["kept"] >= n
    assert made["made"]["task"] == "ioi" and made["made"]["rows"] == n + 1
    assert made["made"]["left_out"]["pairs"] == {f"it has no s2_io_flip{SUFFIX}": 1}
    report = found(tiller, "circuit", dataset=made["id"], params={"method": "eap"})["report"]
    assert report["m_full"] > 2 and report["m_empty"] < -2
    row = next(one for one in tiller.datasets.list() if one["id"] == made["id"])
    assert (row["rows"], row["model"], row["n"]) == ("ioi", MODEL, made["n"])
    assert row["kept"] == {"pairs": n, "swaps": made["swaps"]["kept"]} and row["created_at"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"task": "ioi"}, "both task and rows"),
        ({"rows": [{"prompt": "x"}]}, "both task and rows"),
        ({"task": "chess", "rows": [{}]}, "'ioi'"),
        ({"task": "ioi", "rows": [{"prompt": 3}]}, "row 0"),
        ({"task": "ioi", "rows": [{"s2_io_flip_counterfactual": "x"}]}, "row 0"),
        ({"task": "ioi", "rows": [{"prompt": "x"}]}, "none of 1 rows can be used"),
        ({"task": "arc_easy", "rows": [{"prompt": "x", "choices": 3}]}, "none of 1 rows"),
        ({"task": "ioi", "rows": [{"prompt": "x"}], "n": 3}, "and n says how rows are made"),
        ({"task": "ioi", "rows": [{"prompt": "x"}], "variable": "x"}, "nly ravel takes variable"),
        ({"generator": "ioi", "task": "ioi", "rows": [{}]}, "not both"),
        ({"task": "ravel", "rows": [{"prompt": "x"}], "variable": "Country"}, "no variable"),
    ],
)
def test_rows_that_are_not_the_task_s_are_refused_in_words(url, body, problem):
    with httpx2.Client(base_url=url, timeout=60) as http:
        answer = http.post("/v1/datasets", json={"model": MODEL, **body})
    assert answer.status_code in (404, 422), answer.text
    assert problem in answer.text


def test_ones_own_rows_may_say_which_logits_differ(tiller):
    swaps = [
        {
            "base": swap.base,
            "counterfactual": swap.counterfactual,
            "base_answer": swap.base_answer,
            "counterfactual_answer": swap.counterfactual_answer,
            "expected": dict(swap.expected),
            "of_set": swap.of_set,
            "distractor": swap.distractor,
            "signs": {name: list(signs) for name, signs in swap.signs.items()},
        }
        for swap in miniature().behaviours()["ioi"].swaps(6, 2)
    ]
    made = tiller.datasets.make(model=MODEL, swaps=swaps)
    asked = {
        "variable": "output_token",
        "metric": "logit_difference",
        "featurizer": {"kind": "full"},
        "units": HEADS,
        "jointly": True,
    }
    drawn = tiller.datasets.make(model=MODEL, generator="ioi", vocabulary="miniature", n=6, seed=2)
    ours, theirs = (
        found(tiller, "causal_variable", dataset=one["id"], params=asked)["report"]
        for one in (made, drawn)
    )
    assert ours["metric"] == "logit_difference"
    assert ours["coefficients"] == pytest.approx(theirs["coefficients"])
    bare = [{k: v for k, v in swap.items() if k not in ("distractor", "signs")} for swap in swaps]
    without = tiller.datasets.make(model=MODEL, swaps=[*swaps, *bare])
    with pytest.raises(TillerError, match="no distractor, or no signs") as refused:
        tiller.evaluations.start(
            "causal_variable", model=MODEL, dataset=without["id"], params=asked
        )
    assert refused.value.status == 422


def test_a_benchmark_fills_in_what_is_left_open_and_exports_its_coefficients(tiller, published):
    made = tiller.datasets.make(model=MODEL, task="ioi", rows=published)
    asked = {"variable": "output_token", "benchmark": "ioi_task"}
    with pytest.raises(TillerError, match="layers 0 to 5"):  # heads of GPT-2 small
        tiller.evaluations.start("causal_variable", model=MODEL, dataset=made["id"], params=asked)
    told = found(tiller, "causal_variable", dataset=made["id"], params={**asked, "units": HEADS})
    settings = told["report"]["settings"]
    assert settings["jointly"] and settings["metric"] == "logit_difference"
    assert settings["recipe"] == {"epochs": 2, "batch": 256, "rate": 1.0, "sparsity": 0.0}
    assert settings["featurizer"]["n"] == 32
    data = tiller.evaluations.export(told["evaluation"], "mib-causal-variable", "ioi_task")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        beside = json.loads(archive.read("ioi_coefficients.json"))
    assert {name.partition("/")[0] for name in names if "/" in name} == {
        "ioi_task_LlamaForCausalLM_output_token"
    }
    (one,) = beside.values()
    assert one["token_coeff"] == told["report"]["coefficients"]["token"]
    row = next(r for r in tiller.evaluations.list() if r["id"] == told["evaluation"])
    assert (row["kind"], row["state"], row["rows"]) == ("causal_variable", "succeeded", ["ioi"])
    assert row["asked"]["variable"] == "output_token" and row["asked"]["featurizer"] == "das"
    assert row["main"]["name"] == "logit_difference"
    assert row["main"]["value"] == told["report"]["best"]["value"]


def test_a_file_is_named_at_the_command_line(url, tmp_path, published):
    def typed(*words, code=0):
        done = CliRunner().invoke(app, [*words, "--url", url], env={"COLUMNS": "200"})
        assert done.exit_code == code, done.output + repr(done.exception)
        return done.output

    rows = tmp_path / "ioi.jsonl"
    rows.write_text("\n".join(map(json.dumps, published)), encoding="utf-8")
    told = typed("circuit", "--task", "ioi", "--data", str(rows), "--method", "eap")
    assert "CMD (0 is best)" in told
    pairs = [
        {
            "clean": row["prompt"],
            "corrupted": row["s2_io_flip" + SUFFIX]["prompt"],
            "correct": " " + row["metadata"]["indirect_object"],
            "incorrect": " " + row["metadata"]["subject"],
        }
        for row in published
        if "s2_io_flip" + SUFFIX in row
    ]
    own = tmp_path / "pairs.json"
    own.write_text(json.dumps(pairs), encoding="utf-8")
    named = ("-p", 'parity=["prune"]', "-p", "sizes=[0.02,1.0]")
    typed("circuit", "--data", str(own), "--method", "random", *named)
    listed = typed("list")
    assert "circuit" in listed and "cmd " in listed and "sent" in listed and "ioi" in listed
    assert "pairs" in typed("datasets")
    zipped = tmp_path / "cell.zip"
    name = told.split()[-1]
    assert "bytes" in typed("export", name, "--task", "ioi", "--model", "gpt2", "-o", str(zipped))
    with zipfile.ZipFile(zipped) as archive:
        assert archive.namelist() == ["ioi_gpt2/importances.pt"]
    own.write_text('[{"x": 1}]', encoding="utf-8")
    assert "neither pairs" in typed("circuit", "--data", str(own), code=2)
    own.unlink()
    assert "pairs.json" in typed("circuit", "--data", str(own), code=2)


def test_parity_in_vain_is_refused_at_the_door(tiller):
    made = tiller.datasets.make(model=MODEL, generator="ioi", vocabulary="miniature", n=4)
    with pytest.raises(TillerError, match="mlp-nodes changes nodes and neurons") as refused:
        tiller.evaluations.start(
            "circuit", model=MODEL, dataset=made["id"], params={"parity": ["mlp-nodes"]}
        )
    assert refused.value.status == 422
    with pytest.raises(TillerError, match="batch-weights"):
        tiller.evaluations.start(
            "circuit", model=MODEL, dataset=made["id"], params={"parity": ["anything"]}
        )


def test_what_is_too_large_to_submit_says_why_and_what_to_do(tiller, published, monkeypatch):
    monkeypatch.setattr("service.evidence_kinds._SUBMITTED_BYTES", 1000)
    made = tiller.datasets.make(model=MODEL, task="ioi", rows=published)
    asked = {
        "variable": "output_position",
        "layers": [4],
        "positions": ["last_token"],
        "featurizer": {"kind": "pca", "n": 4},
    }
    name = found(tiller, "causal_variable", dataset=made["id"], params=asked)["evaluation"]
    for call in (
        lambda: tiller.evaluations.export(name, "mib-causal-variable", "ioi_task"),
        lambda: tiller.evaluations.artifact(name, "featurizers.zip"),
    ):
        with pytest.raises(TillerError, match="no more than 0 MB are kept") as refused:
            call()
        assert "fewer layers or positions" in refused.value.remedy
    assert "No featurizers.zip" in tiller.evaluations.artifact(name, "report.md").decode()
