"""Files from outside: no check is passed by leaving the service and coming back."""

import io
import json
import zipfile
from dataclasses import replace

import pytest

from editors.delta import Delta
from service.lineage import TOOL

MODEL = "tiny"
WEAK = {"steps": 3, "rate": 0.1}


def imported(http, name, data, **form):
    files = {"file": ("delta", data, "application/octet-stream")}
    return http.post("/v1/edits/import", data={"name": name, "model": MODEL, **form}, files=files)


def refused(answer, status, code):
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), answer.text
    assert told["remedy"]
    return told


def exported(http, name, form="safetensors"):
    return http.get(f"/v1/edits/{name}/versions/1/delta?format={form}").content


@pytest.fixture(scope="module")
def failed(url, fitted):
    """The name of an edit whose one version failed its checks."""
    result = fitted(url, "feeble", options=WEAK)
    assert result["status"] == "failed_checks"
    return "feeble"


def test_a_delta_that_failed_its_checks_fails_them_again(http, failed):
    version = imported(http, "laundered", exported(http, failed)).json()
    assert version["status"] == "failed_checks"
    shown = http.get(f"/v1/edits/{failed}/versions/1").json()
    assert version["digest"] == shown["digest"]
    assert version["report"]["efficacy"] == pytest.approx(shown["report"]["efficacy"], abs=1e-5)
    assert version["report"]["neighbours"]
    moved = http.put("/v1/edits/laundered/aliases/live", json={"version": 1})
    refused(moved, 409, "checks_failed")


def test_what_a_file_says_of_itself_is_not_believed(http, failed):
    forged = Delta.read(exported(http, failed))
    report = {**forged.header["report"], "passed": True, "failed": [], "efficacy": 1.0}
    version = imported(http, "forged", forged.with_header(report=report).data).json()
    assert version["header"]["report"]["passed"]
    assert version["status"] == "failed_checks"
    assert version["report"]["efficacy"] < 0.9


def test_a_good_delta_is_as_good_after_the_way_out_and_in(http, edit):
    before = http.get(f"/v1/edits/{edit}/versions/1").json()
    after = imported(http, "traveller", exported(http, edit)).json()
    assert after["status"] == before["status"]
    for measure in ("efficacy", "generality", "specificity", "leak", "drift"):
        assert after["report"][measure] == pytest.approx(before["report"][measure], abs=1e-4)


def test_an_adapter_without_a_fact_is_unmeasured_and_says_how_large_it_is(http, edit):
    version = imported(http, "loose", exported(http, edit, "peft")).json()
    assert version["status"] == "unmeasured"
    report = version["report"]
    assert report["passed"] is None
    assert report["why"]
    own = http.get(f"/v1/edits/{edit}/versions/1").json()["report"]
    assert report["drift"] == pytest.approx(own["drift"], rel=1e-3)
    assert report["leak"] > 0
    (size,) = report["sites"].values()
    assert size["rank"] == 1
    assert size["norm"] > 0


def test_an_unmeasured_version_is_used_by_number_and_takes_no_name_unasked(http, edit):
    imported(http, "unasked", exported(http, edit, "peft"))

    def drawn(name):
        asked = {"model": MODEL, "prompt": "a cup", "edits": [name]}
        return http.post("/v1/images/generations", json=asked)

    assert drawn("unasked@1").status_code == 200
    bare = drawn("unasked")
    assert bare.json()["error"]["code"] == "no_ready_version"
    alias = "/v1/edits/unasked/aliases/live"
    refused(http.put(alias, json={"version": 1}), 409, "not_measured")
    assert http.put(alias, json={"version": 1, "force": True}).status_code == 200
    assert drawn("unasked").status_code == 200


def without_keys(delta):
    return {
        s: replace(f, keys=f.keys[:0], solved=f.solved[:0], values=f.values[:0])
        for s, f in delta.factors.items()
    }


def test_a_fact_that_cannot_be_measured_is_no_pass(http, edit):
    delta = Delta.read(exported(http, edit))
    fact = {**delta.header["fact"], "target": "", "target_images": ["ab"]}
    for name, changed in (
        ("keyless", Delta(delta.header, without_keys(delta))),
        ("pictured", delta.with_header(fact=fact)),
    ):
        version = imported(http, name, changed.data).json()
        assert version["status"] == "unmeasured"
        assert version["report"]["why"]


@pytest.mark.parametrize(
    "changes",
    [
        {"fact": ["king"]},
        {"fact": {"prompt": "the king of the sea"}},
        {"fact": {"prompt": "the king", "subject": "king", "target": 3}},
        {"fact": {"prompt": "the king", "subject": "king", "target": "x", "target_images": [{}]}},
        {"fact": {"prompt": "a king", "subject": "king", "target": "x", "phrasings": ["king"]}},
        {"base": []},
        {"settings": "none"},
        {"fit": {"text_encoder": 3}},
        {"fit": {"text_encoder": {"moment": {"per_dimension": "many"}}}},
    ],
)
def test_a_header_that_lies_about_its_kinds_is_refused(http, edit, changes):
    data = Delta.read(exported(http, edit)).with_header(**changes).data
    refused(imported(http, "lying", data), 422, "bad_delta")


def test_a_fact_whose_subject_is_not_in_its_prompt_is_refused(http, edit):
    delta = Delta.read(exported(http, edit))
    fact = {**delta.header["fact"], "subject": "emperor"}
    answer = imported(http, "misplaced", delta.with_header(fact=fact).data)
    refused(answer, 422, "subject_not_found")


@pytest.mark.parametrize(
    "config",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"r": "1", "lora_alpha": 1}',
        b'{"r": 1, "lora_alpha": null}',
        b'{"lora_alpha": 1}',
        b'{"r": 0, "lora_alpha": 1}',
        b'{"r": 1, "lora_alpha": NaN}',
        b"[" * 100_000,
    ],
)
def test_an_adapter_with_a_broken_configuration_is_refused(http, edit, config):
    archive = zipfile.ZipFile(io.BytesIO(exported(http, edit, "peft")))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as changed:
        for name in archive.namelist():
            broken = name.endswith("adapter_config.json")
            changed.writestr(name, config if broken else archive.read(name))
    refused(imported(http, "broken", buffer.getvalue()), 422, "bad_adapter")


@pytest.mark.parametrize("data", [b"", b"\x80\x04}q\x00.", b"PK\x03\x04junk", b"{}", b"x" * 5000])
def test_a_file_that_is_neither_is_refused(http, data):
    told = refused(imported(http, "junk", data), 422, "bad_adapter")
    assert "PEFT folder as zip" in told["remedy"]


def test_versions_know_their_parents_and_the_program_that_wrote_them(http, url, fitted):
    first = fitted(url, "dynasty", target="a blue cup")
    second = fitted(url, "dynasty", target="a green house")
    shown = [http.get(f"/v1/edits/dynasty/versions/{n}").json() for n in (1, 2)]
    assert [s["parent"] for s in shown] == [None, first["digest"]]
    assert [s["tool"] for s in shown] == [TOOL, TOOL]
    header = Delta.read(http.get("/v1/edits/dynasty/versions/2/delta").content).header
    assert (header["parent"], header["tool"]) == (first["digest"], TOOL)
    assert json.loads(json.dumps(shown[1]["header"]))["parent"] == first["digest"]
    third = imported(http, "dynasty", exported(http, "dynasty", "peft")).json()
    assert (third["version"], third["parent"], third["tool"]) == (3, second["digest"], TOOL)


def test_the_same_fact_fitted_again_is_the_version_that_is_there(url, fitted):
    first, again = (fitted(url, "steady", target="a blue cup") for _ in range(2))
    assert again["digest"] == first["digest"]
    assert again["version"] == first["version"] == 1


def test_the_same_file_imported_again_is_the_version_that_is_there(http, edit):
    data = exported(http, edit)
    first, again = (imported(http, "homecoming", data).json() for _ in range(2))
    assert (first["version"], again["version"]) == (1, 1)
    assert again["parent"] is None
