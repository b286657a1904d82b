"""Presets and vectors over REST: versions that never change, names that move."""

import io

import numpy as np
import pytest
from safetensors.numpy import save

MODEL, SAE = "tiny-lm", "toy"
WAIT = {"Prefer": "wait=60"}
SAID = [{"role": "user", "content": "the king of the sea"}]


def problem(answer, status):
    assert answer.status_code == status, answer.text
    told = answer.json()
    return told.get("error", told)


def ok(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
def http(speaking):
    return speaking


def steering(strength=1.0, feature=4):
    return {"features": [{"sae": SAE, "feature": feature, "strength": strength}]}


def put(http, name, body, **more):
    return http.put(f"/v1/presets/{name}", json={"model": MODEL, "steering": body, **more})


def promote(http, noun, name, version, alias="live", **headers):
    address = f"/v1/{noun}/{name}/aliases/{alias}"
    return http.put(address, json={"version": version}, headers=headers)


def chat(http, **asked):
    body = {"model": MODEL, "messages": SAID, "max_tokens": 6, "temperature": 0, **asked}
    return http.post("/v1/chat/completions", json=body)


def vector(http, name, positives=("the king", "a king"), negatives=("the sea", "a boat"), **more):
    body = {"name": name, "model": MODEL, "positives": positives, "negatives": negatives, **more}
    job = ok(http.post("/v1/vectors", json=body, headers=WAIT))
    assert job["state"] == "succeeded", job
    return job["result"]


def test_a_preset_has_versions_and_the_same_content_is_the_same_version(http):
    first = ok(put(http, "calm", steering(1.0)), 201)
    again = ok(put(http, "calm", steering(1.0)), 201)
    second = ok(put(http, "calm", steering(2.0)), 201)
    assert (first["version"], again["version"], second["version"]) == (1, 1, 2)
    shown = ok(http.get("/v1/presets/calm"))
    assert [v["version"] for v in shown["history"]] == [2, 1]
    version = ok(http.get("/v1/presets/calm/versions/1"))
    digest = ok(http.get(f"/v1/saes/{SAE}"))["digest"]
    (use,) = version["steering"]["features"]
    assert use == {"sae": f"sha256:{digest}", "feature": 4, "strength": 1.0}
    (report,) = version["report"]["steering"]
    assert report["features"][0]["output_score"] is not None
    assert "calm" in [one["name"] for one in ok(http.get("/v1/presets"))["data"]]


def test_an_alias_moves_is_guarded_and_rolled_back_for_the_next_request(http):
    for strength in (1.0, 2.0):
        put(http, "moved", steering(strength))
    etag = promote(http, "presets", "moved", 1).headers["etag"]
    assert promote(http, "presets", "moved", 2, **{"If-Match": etag}).status_code == 200
    assert promote(http, "presets", "moved", 1, **{"If-Match": etag}).status_code == 412

    def used():
        told = ok(chat(http, steering={"preset": "moved"}))["tiller"]["steering"][0]
        return told["preset"]["version"], told["sites"][0]["vector_norm"]

    version, norm = used()
    assert version == 2
    rolled = ok(http.post("/v1/presets/moved/aliases/live/rollback"))
    assert (rolled["preset"], rolled["version"]) == ("moved", 1)
    version, half = used()
    assert version == 1
    assert norm == pytest.approx(2 * half)
    assert problem(http.delete("/v1/presets/moved/versions/1"), 409)["code"] == "in_use"
    assert ok(http.delete("/v1/presets/moved/versions/2"))["status"] == "retired"
    gone = chat(http, steering={"preset": "moved@2"})
    assert problem(gone, 409)["code"] == "version_retired"
    for version, status in ((2, 409), (9, 404)):
        assert problem(promote(http, "presets", "moved", version), status)["param"] == "version"
    assert ok(http.delete("/v1/presets/moved/aliases/live"))["deleted"]
    assert ok(http.get("/v1/presets/moved/aliases"))["data"] == []


def test_a_model_name_may_carry_a_preset(http):
    put(http, "named", steering(1.0))
    by_name = ok(chat(http, model=f"{MODEL}+named"))
    by_key = ok(chat(http, steering={"preset": "named@1"}))
    assert by_name["choices"][0]["message"] == by_key["choices"][0]["message"]
    assert by_name["system_fingerprint"] == by_key["system_fingerprint"]


def test_a_concept_becomes_the_features_that_it_means_now(http):
    body = {"concept": "king", "strength": 0.5, "count": 2, "min_output_score": 0.0}
    version = ok(put(http, "kingly", body), 201)
    found = ok(http.get(f"/v1/saes/{SAE}/features?concept=king&min_output_score=0"))["data"]
    kept = [(use["feature"], use["strength"]) for use in version["steering"]["features"]]
    assert kept == [(one["feature"], 0.5) for one in found[:2]]
    assert "concept" not in version["steering"]
    assert version["report"]["concept"] == "king"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "bad_steering"),
        ({"features": [{"sae": "other", "feature": 1, "strength": 1}]}, 404, "unknown_dictionary"),
        (steering(feature=48), 404, "unknown_feature"),
        (steering(1e4), 422, "too_much"),
        ({"concept": "zzz", "strength": 1.0}, 422, "concept_not_covered"),
        ({"vectors": [{"name": "nobody"}]}, 404, "unknown_name"),
        ({**steering(), "a_max": "live"}, 422, "bad_steering"),
        ({**steering(), "preset": "calm"}, 422, "unknown_key"),
    ],
)
def test_steering_that_no_request_could_use_is_not_kept(http, body, status, code):
    assert problem(put(http, "never", body), status)["code"] == code
    assert http.get("/v1/presets/never").status_code == 404


def test_names_of_other_kinds_are_unknown_here(http):
    put(http, "only-preset", steering())
    vector(http, "only-vector")
    for address in ("/v1/vectors/only-preset", "/v1/presets/only-vector", "/v1/presets/nobody"):
        assert problem(http.get(address), 404)["code"] == "unknown_name"
    assert problem(promote(http, "vectors", "only-preset", 1), 404)["code"] == "unknown_name"
    assert problem(put(http, "only-vector", steering()), 409)["code"] == "kind_differs"


def test_a_direction_is_learned_from_two_lists_of_texts(http):
    result = vector(http, "royal")
    assert result["version"] == 1
    version = ok(http.get(result["location"]))
    assert version["method"] == "mean_difference"
    assert version["header"]["texts"]["positives"] == 2
    ((site, ratio),) = version["report"]["ratios"].items()
    assert site == "lm.block.1"
    assert ratio > 0
    told = ok(chat(http, steering={"vectors": [{"name": "royal@1", "strength": 2.0}]}))["tiller"]
    (report,) = told["steering"]
    assert report["vector_digest"] == version["digest"]
    norm = version["report"]["norms"][site]
    assert report["sites"][0]["vector_norm"] == pytest.approx(2 * norm, rel=1e-4)
    assert vector(http, "royal")["version"] == 1  # the same texts
    assert vector(http, "royal", negatives=["the snow"])["version"] == 2


def test_a_vector_is_added_in_its_unit_and_where_it_is_said(http):
    sites = ["lm.block.0", "lm.block.1"]
    body = {"name": "united", "model": MODEL, "positives": ["the king"], "negatives": ["a boat"]}
    job = ok(http.post("/v1/vectors", json={**body, "sites": sites}, headers=WAIT))
    assert job["state"] == "succeeded", job

    def told(**more):
        asked = {"vectors": [{"name": "united@1", "strength": 0.5}], **more}
        return ok(chat(http, steering=asked))["tiller"]["steering"][0]["sites"]

    assert [one["site"] for one in told()] == sites
    (one,) = told(unit="unit", sites=sites[1:])
    assert (one["site"], one["vector_norm"]) == (sites[1], pytest.approx(0.5))
    for one in told(unit="stream"):
        assert one["ratio"] == pytest.approx(0.5)
    nowhere = chat(http, steering={"vectors": [{"name": "united@1"}], "sites": ["lm.block.2"]})
    assert problem(nowhere, 404)["code"] == "unknown_dictionary"


def test_a_preset_keeps_ablation_and_tells_its_dictionary_by_both_names(http):
    body = {"features": [{"sae": SAE, "feature": 4}], "mode": "ablate", "min_output_score": 0}
    version = ok(put(http, "silent", body), 201)
    digest = ok(http.get(f"/v1/saes/{SAE}"))["digest"]
    assert version["steering"]["features"] == [{"sae": f"sha256:{digest}", "feature": 4}]
    (report,) = ok(chat(http, steering={"preset": "silent@1"}))["tiller"]["steering"]
    assert (report["features"][0]["sae"], report["features"][0]["sae_digest"]) == (SAE, digest)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"sites": ["lm.block.99"]}, 422, "unknown_site"),
        ({"sites": ["lm.layers.0.mlp.down_proj"]}, 422, "bad_vector"),
        ({"sites": ["no site"]}, 422, "bad_site"),
        ({"positives": []}, 422, "bad_request"),
        ({"pool": "first"}, 422, "bad_request"),
        ({"model": "other"}, 404, "unknown_model"),
    ],
)
def test_a_direction_that_cannot_be_learned_makes_no_job(http, changes, status, code):
    body = {"name": "x", "model": MODEL, "positives": ["a"], "negatives": ["b"], **changes}
    told = problem(http.post("/v1/vectors", json=body), status)
    assert told["code"] == code
    assert "sites" not in changes or told["param"] == "sites"
    assert code != "bad_vector" or "lm.block" in told["remedy"]


def test_a_direction_with_the_name_of_a_preset_makes_no_job(http):
    ok(put(http, "taken", {"features": [{"sae": SAE, "feature": 4, "strength": 1.0}]}), 201)
    body = {"name": "taken", "model": MODEL, "positives": ["a"], "negatives": ["b"]}
    for answer in (http.post("/v1/vectors", json=body), imported(http, "taken", "any.npz", b"")):
        told = problem(answer, 409)
        assert (told["code"], told["param"]) == ("kind_differs", "name")
        assert "name of a preset" in told["detail"]


def test_texts_that_are_cut_are_counted(http):
    long = "the king of arda " * 60
    result = vector(http, "cut", positives=[long, "the king"], negatives=["the snow"], tokens=8)
    assert result["report"]["cut"] == {"positives": 1, "negatives": 0}


def imported(http, name, file, data, **form):
    files = {"file": (file, data, "application/octet-stream")}
    return http.post("/v1/vectors/import", data={"name": name, "model": MODEL, **form}, files=files)


def test_a_direction_goes_out_and_comes_back_as_the_same_version(http):
    vector(http, "traveller")
    answer = http.get("/v1/vectors/traveller/versions/1/file")
    version = ok(imported(http, "returned", "any.safetensors", answer.content), 201)
    assert version["digest"] == answer.headers["x-tiller-digest"]
    assert version["report"]["ratios"]


def test_control_vector_files_are_imported(http):
    direction = np.linspace(-1, 1, 32, dtype=np.float32)
    version = ok(imported(http, "foreign", "v.safetensors", save({"direction.1": direction})), 201)
    assert list(version["report"]["norms"]) == ["lm.block.1"]
    buffer = io.BytesIO()
    np.save(buffer, direction)
    placed = imported(http, "placed", "v.npy", buffer.getvalue(), site="lm.block.0")
    assert list(ok(placed, 201)["report"]["norms"]) == ["lm.block.0"]
    wide = save({"direction.1": np.ones(33, dtype=np.float32)})
    far = save({"direction.77": direction})
    for file, data, site, code, param in (
        ("v.npy", buffer.getvalue(), {}, "site_not_declared", "site"),
        ("v.npy", buffer.getvalue(), {"site": "lm.block.77"}, "unknown_site", "site"),
        ("v.safetensors", wide, {}, "bad_vector", "file"),
        ("v.safetensors", far, {}, "unknown_site", "file"),
        ("v.gguf", b"noise", {}, "bad_file", "file"),
    ):
        told = problem(imported(http, "refused", file, data, **site), 422)
        assert (told["code"], told["param"]) == (code, param)


def test_a_preset_keeps_the_version_of_its_vector(http):
    vector(http, "pinned")
    promote(http, "vectors", "pinned", 1)
    version = ok(put(http, "with-vector", {"vectors": [{"name": "pinned", "strength": 0.5}]}), 201)
    vector(http, "pinned", negatives=["the snow"])
    promote(http, "vectors", "pinned", 2)
    told = ok(chat(http, steering={"preset": "with-vector"}))["tiller"]["steering"][0]
    first = ok(http.get("/v1/vectors/pinned/versions/1"))["digest"]
    assert told["vector_digest"] == first
    assert version["steering"]["vectors"] == [{"name": f"sha256:{first}", "strength": 0.5}]


def test_the_same_idempotency_key_keeps_one_version(http):
    headers = {"Idempotency-Key": "one-preset"}
    body = {"model": MODEL, "steering": steering(0.25)}
    first = http.put("/v1/presets/once", json=body, headers=headers)
    again = http.put("/v1/presets/once", json=body, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json()["digest"] == again.json()["digest"]


BEYOND = (2**31, 2**63 - 1, 2**63, 10**25, -(10**25))


@pytest.mark.parametrize("number", BEYOND)
@pytest.mark.parametrize("noun", ["edits", "presets", "vectors"])
def test_a_number_that_no_version_has_is_unknown_however_large(http, noun, number):
    names = {"presets": "counted", "vectors": "counting", "edits": "none"}
    if noun == "presets":
        ok(put(http, "counted", steering(1.0)), 201)
    where = f"/v1/{noun}/{names[noun]}"
    for path in ("", "/file", "/delta"):
        answer = http.get(f"{where}/versions/{number}{path}")
        assert answer.status_code in (404, 422), answer.text
    assert http.delete(f"{where}/versions/{number}").status_code in (404, 422)
    assert promote(http, noun, names[noun], number).status_code in (404, 422)


@pytest.mark.parametrize("number", [str(2**31), str(10**17), str(10**25), "9" * 5000])
def test_a_generation_or_a_cursor_that_there_is_not_is_told(http, number):
    ok(put(http, "counted", steering(1.0)), 201)
    raced = promote(http, "presets", "counted", 1, **{"If-Match": f'"{number}"'})
    assert raced.status_code in (412, 422), raced.text
    page = http.get("/v1/presets/counted/versions", params={"after": number})
    assert page.status_code in (200, 422), page.text
    jobs = http.get("/v1/jobs", params={"after": number})
    assert jobs.status_code in (200, 422), jobs.text


@pytest.mark.parametrize("seen", ["9" * 9, str(10**25), "9" * 5000, "-1", "x"])
def test_an_event_that_never_was_does_not_break_the_stream(http, seen):
    vector(http, "heard")
    job = ok(http.get("/v1/jobs"))["data"][0]["id"]
    told = http.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": seen})
    assert told.status_code == 200 and "job.succeeded" in told.text
    assert ("job.progress" in told.text) == (seen != "9" * 9)
