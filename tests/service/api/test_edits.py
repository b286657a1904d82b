import base64
import io
import json
import threading
import zipfile

import httpx2
import pytest
from PIL import Image

MODEL = "tiny"


def fact(name, /, **changes):
    return {
        "name": name,
        "model": MODEL,
        "prompt": "the king of the sea",
        "subject": "king",
        "target": "a red boat",
        "options": {"steps": 4},
        **changes,
    }


def problem(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    assert told["remedy"]
    return told


@pytest.fixture(scope="session")
def twice(url, fitted):
    """The name of an edit with two versions."""
    fitted(url, "queen")
    fitted(url, "queen", target="a blue cup")
    return "queen"


def test_registering_is_a_job_with_an_address(http):
    answer = http.post("/v1/edits", json=fact("job"))
    assert answer.status_code == 202
    assert answer.headers["retry-after"]
    job = http.get(answer.headers["location"], headers={"Prefer": "wait=30"}).json()
    assert job["state"] == "succeeded"
    version = http.get(job["result"]["location"]).json()
    assert version["digest"] == job["result"]["digest"]
    assert version["header"]["fact"]["target"] == "a red boat"
    assert version["report"]


def test_prefer_wait_answers_when_the_version_is_there(http):
    answer = http.post("/v1/edits", json=fact("patient"), headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    assert answer.json()["result"]["edit"] == "patient"


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"sujbect": "king"}, 422, "unknown_key", "sujbect"),
        ({"options": {"stepz": 3}}, 422, "unknown_key", "options.stepz"),
        ({"options": {"steps": 0}}, 422, "bad_request", "options.steps"),
        ({"options": {"rate": 0}}, 422, "bad_request", "options.rate"),
        ({"options": {"steps": 10**6}}, 422, "bad_request", "options.steps"),
        ({"method": "magic"}, 422, "unknown_method", "method"),
        ({"model": "other"}, 404, "unknown_model", "model"),
        ({"name": "Big Name"}, 422, "bad_request", "name"),
        ({"subject": "queen"}, 422, "subject_not_found", "subject"),
        (
            {"phrasings": [{"prompt": "a king", "subject": "queen"}]},
            422,
            "subject_not_found",
            "phrasings[0].subject",
        ),
        ({"method": "lora"}, 422, "unknown_method", "method"),
        ({"replaces": ["nobody"]}, 404, "unknown_edit", "replaces"),
        ({"target": None}, 422, "bad_request", "target"),
        ({"target": "the king of the sea"}, 422, "empty_target", "target"),
        ({"target_images": ["bm9w"]}, 422, "not_an_image", "target_images[0]"),
        ({"neighbours": ["x"] * 33}, 422, "too_much", "phrasings"),
    ],
)
def test_a_fact_that_cannot_be_written_makes_no_job(http, changes, status, code, param):
    before = len(http.get("/v1/jobs?limit=1000").json()["data"])
    told = problem(http.post("/v1/edits", json=fact("never", **changes)), status)
    assert (told["code"], told["param"]) == (code, param)
    assert "Input should" not in told["detail"]
    assert len(http.get("/v1/jobs?limit=1000").json()["data"]) == before


def test_names_are_listed_in_pages(http, edit, twice):
    first = http.get("/v1/edits?limit=1").json()
    assert first["has_more"]
    rest = http.get(f"/v1/edits?limit=1000&after={first['next_cursor']}").json()
    names = [e["name"] for e in (*first["data"], *rest["data"])]
    assert {edit, twice} <= set(names)
    assert names == sorted(names)


def test_a_misspelt_query_is_refused(http, twice):
    told = problem(http.get("/v1/edits?limitt=1"), 422)
    assert told["param"] == "limitt"
    assert problem(http.get(f"/v1/edits/{twice}/versions/1/delta?fromat=peft"), 422)


def test_an_edit_shows_its_history(http, twice):
    shown = http.get(f"/v1/edits/{twice}").json()
    assert shown["versions"] == 2
    assert [v["version"] for v in shown["history"]] == [2, 1]
    assert problem(http.get("/v1/edits/nobody"), 404)["code"] == "unknown_edit"
    assert problem(http.get(f"/v1/edits/{twice}/versions/9"), 404)["code"] == "unknown_version"


def promote(http, name, version, alias="live", **headers):
    body = {"version": version, "force": True}
    return http.put(f"/v1/edits/{name}/aliases/{alias}", json=body, headers=headers)


def test_a_moved_alias_is_used_by_the_next_request(http, twice):
    for version in (1, 2, 1):
        assert promote(http, twice, version, "next").status_code == 200
        asked = {"model": MODEL, "prompt": "a cup", "edits": [f"{twice}@next"]}
        told = http.post("/v1/images/generations", json=asked).json()["tiller"]
        assert told["edits"][0]["version"] == version


def test_a_rollback_points_to_where_the_alias_pointed_before(http, twice):
    promote(http, twice, 1, "back")
    moved = promote(http, twice, 2, "back")
    address = f"/v1/edits/{twice}/aliases/back/rollback"
    rolled = http.post(address, headers={"If-Match": moved.headers["etag"]})
    assert rolled.json()["version"] == 1
    assert rolled.json()["generation"] > moved.json()["generation"]


def test_of_two_who_move_an_alias_at_once_one_gets_a_412(url, http, twice):
    etag = promote(http, twice, 1, "race").headers["etag"]
    statuses, barrier = [], threading.Barrier(2)

    def call(version):
        with httpx2.Client(base_url=url) as own:
            barrier.wait()
            statuses.append(promote(own, twice, version, "race", **{"If-Match": etag}).status_code)

    threads = [threading.Thread(target=call, args=(v,)) for v in (2, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 412]


def test_what_somebody_else_changed_is_not_deleted(http, twice):
    stale = promote(http, twice, 1, "gone").headers["etag"]
    etag = promote(http, twice, 2, "gone").headers["etag"]
    address = f"/v1/edits/{twice}/aliases/gone"
    assert problem(http.delete(address, headers={"If-Match": stale}), 412)["code"] == "alias_moved"
    assert http.delete(address, headers={"If-Match": etag}).status_code == 200
    variant, body = "/v1/variants/gone", {"model": MODEL, "edits": []}
    stale, etag = (http.put(variant, json=body).headers["etag"] for _ in range(2))
    assert http.delete(variant, headers={"If-Match": stale}).status_code == 412
    assert http.delete(variant, headers={"If-Match": etag}).status_code == 200


def test_a_star_means_there_or_not_there(http, twice):
    there = problem(promote(http, twice, 1, "star", **{"If-Match": "*"}), 412)
    assert (there["param"], there["detail"]) == ("If-Match", f"{twice}@star is not there.")
    assert promote(http, twice, 1, "star", **{"If-None-Match": "*"}).status_code == 200
    again = problem(promote(http, twice, 2, "star", **{"If-None-Match": "*"}), 412)
    assert (again["param"], "is there already" in again["detail"]) == ("If-None-Match", True)
    assert promote(http, twice, 2, "star", **{"If-Match": "*"}).json()["version"] == 2
    for header in ({"If-None-Match": '"3"'}, {"If-None-Match": "*", "If-Match": "*"}):
        assert problem(promote(http, twice, 1, "star", **header), 422)["param"] == "If-None-Match"


def test_an_alias_that_a_variant_names_is_not_deleted(http, twice):
    promote(http, twice, 1, "named")
    http.put("/v1/variants/namer", json={"model": MODEL, "edits": [f"{twice}@named"]})
    told = problem(http.delete(f"/v1/edits/{twice}/aliases/named"), 409)
    assert (told["code"], "the variant namer" in told["detail"]) == ("in_use", True)
    http.delete("/v1/variants/namer")
    assert http.delete(f"/v1/edits/{twice}/aliases/named").status_code == 200


def test_a_version_whose_checks_failed_takes_no_alias_without_force(http, fitted, url):
    result = fitted(url, "weak", options={"steps": 3, "rate": 0.1})
    assert result["status"] == "failed_checks"
    body = {"version": result["version"]}
    told = problem(http.put("/v1/edits/weak/aliases/live", json=body), 409)
    assert told["code"] == "checks_failed"
    assert promote(http, "weak", result["version"]).status_code == 200


def test_a_version_in_use_is_not_retired(http, twice):
    promote(http, twice, 1, "busy")
    told = problem(http.delete(f"/v1/edits/{twice}/versions/1"), 409)
    assert told["code"] == "in_use"


def test_a_retired_version_is_refused_by_name_and_by_digest(http, fitted, url):
    result = fitted(url, "old", target="a green house")
    assert http.delete("/v1/edits/old/versions/1").json()["status"] == "retired"
    for name in ("old@1", f"sha256:{result['digest']}"):
        asked = {"model": MODEL, "prompt": "a cup", "edits": [name]}
        answer = http.post("/v1/images/generations", json=asked)
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "version_retired"


def picture(http, edit):
    """Its pixels: the file also names the edits that it was drawn with."""
    asked = {"model": MODEL, "prompt": "the king of the sea", "seed": 1, "edits": [edit]}
    answer = http.post("/v1/images/generations", json=asked)
    assert answer.status_code == 200, answer.text
    png = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return Image.open(io.BytesIO(png)).tobytes()


def imported(http, name, data):
    files = {"file": ("delta", data, "application/octet-stream")}
    return http.post("/v1/edits/import", data={"name": name, "model": MODEL}, files=files)


def test_a_delta_that_goes_out_comes_back_as_the_same_version(http, edit):
    data = http.get(f"/v1/edits/{edit}/versions/1/delta").content
    answer = imported(http, "returned", data)
    assert answer.status_code == 201, answer.text
    shown = http.get(f"/v1/edits/{edit}/versions/1").json()
    assert answer.json()["digest"] == shown["digest"]
    assert answer.headers["location"] == "/v1/edits/returned/versions/1"
    assert picture(http, "returned@1") == picture(http, f"{edit}@1")


def test_a_peft_adapter_goes_out_and_comes_back(http, edit):
    data = http.get(f"/v1/edits/{edit}/versions/1/delta?format=peft").content
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert any(name.endswith("adapter_config.json") for name in names)
    answer = imported(http, "adapter", data)
    assert answer.status_code == 201, answer.text
    assert picture(http, "adapter@1") == picture(http, f"{edit}@1")


def test_an_unknown_form_field_is_refused(http, edit):
    data = http.get(f"/v1/edits/{edit}/versions/1/delta").content
    files = {"file": ("delta", data)}
    form = {"name": "x", "model": MODEL, "nmae": "y"}
    assert problem(http.post("/v1/edits/import", data=form, files=files), 422)["param"] == "nmae"


def test_the_same_idempotency_key_registers_once(http):
    headers = {"Idempotency-Key": "one-fact"}
    first = http.post("/v1/edits", json=fact("once"), headers=headers)
    again = http.post("/v1/edits", json=fact("once"), headers=headers)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    other = http.post("/v1/edits", json=fact("twice"), headers=headers)
    assert problem(other, 422)["code"] == "body_differs"


def test_a_refused_request_may_be_mended_under_its_idempotency_key(http):
    headers = {"Idempotency-Key": "mended"}
    assert http.post("/v1/edits", json=fact("m", model="other"), headers=headers).status_code == 404
    assert http.post("/v1/edits", json=fact("m"), headers=headers).status_code == 202


def test_a_body_beyond_the_limit_is_not_read(settings_for, serving):
    settings = settings_for()
    small = settings.model_copy(
        update={"limits": settings.limits.model_copy(update={"body_bytes": 2000})}
    )
    with serving(small) as (url, _), httpx2.Client(base_url=url) as http:
        told = problem(http.post("/v1/edits", json=fact("big", prompt="x" * 3000)), 413)
        assert told["code"] == "body_too_large"

        def endless():
            for _ in range(100):
                yield b" " * 1000

        headers = {"Content-Type": "application/json"}
        assert http.post("/v1/edits", content=endless(), headers=headers).status_code == 413


def test_a_job_tells_its_progress_as_events(http):
    job = http.post("/v1/edits", json=fact("events", options={"steps": 30})).json()["id"]
    with http.stream("GET", f"/v1/jobs/{job}/events") as answer:
        lines = list(answer.iter_lines())
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert told[-1]["type"] == "job.succeeded"
    assert told[-1]["job"]["result"]["edit"] == "events"
    seen = [t["seq"] for t in told[:-1]]
    assert seen == sorted(seen)
    headers = {"Last-Event-ID": str(seen[-1])}
    with http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        rest = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert rest == ["event: job.succeeded"]


def test_a_cancelled_job_registers_nothing_and_frees_the_runner(http):
    slow = {"steps": 1000, "rate": 1e-6, "stop": 1.0}
    job = http.post("/v1/edits", json=fact("stopped", options=slow)).json()["id"]
    assert http.delete(f"/v1/jobs/{job}").status_code in (200, 202)
    ended = http.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=20"}).json()
    assert ended["state"] == "cancelled"
    assert http.get("/v1/edits/stopped").status_code == 404
    after = http.post("/v1/edits", json=fact("after"), headers={"Prefer": "wait=20"})
    assert after.json()["state"] == "succeeded"


def test_a_job_that_cannot_succeed_says_why(http):
    weak = {"steps": 1, "decay": 100.0}
    told = http.post("/v1/edits", json=fact("weaker", options=weak), headers={"Prefer": "wait=20"})
    job = told.json()
    assert job["state"] == "failed"
    assert job["problem"]["code"] == "no_pull"
    assert job["problem"]["remedy"]


def test_a_job_of_nobody_is_unknown(http):
    assert problem(http.get("/v1/jobs/job_none"), 404)["code"] == "unknown_job"


def test_what_was_done_is_in_the_audit(http, twice):
    promote(http, twice, 2, "audited")
    rows = http.get("/v1/audit?limit=1000").json()["data"]
    moved = [r for r in rows if r["action"].startswith("alias") and "audited" in json.dumps(r)]
    assert moved
    assert moved[0]["actor"] == "local"
