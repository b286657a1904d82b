"""The operator's file of templates, from the settings to a version's header and report."""

import json
import time

import httpx2
import pytest

from service.local import running

MODEL = "tiny"
NINE = [f"{{}} on shelf {n}" for n in "abcde"] + [f"behind {n} stands {{}}" for n in "abcd"]


def fact(**changes):
    return {
        "name": "king",
        "model": MODEL,
        "prompt": "the king of the sea",
        "target": "a red boat",
        "options": {"steps": 4, "mode": "reference"},
        **changes,
    }


@pytest.fixture
def with_templates(settings_for, tmp_path):
    """A function: settings of a service whose model is given these templates."""

    def make(templates):
        file = tmp_path / "nine.json"
        file.write_text(json.dumps(templates))
        return settings_for(model={"refact": {"templates": str(file)}})

    return make


def test_a_version_tells_that_the_operators_templates_were_fitted(with_templates, serving):
    served = serving(with_templates(NINE))
    with served as (url, _), httpx2.Client(base_url=url, timeout=60) as http:
        wait = {"Prefer": "wait=60"}
        job = http.post("/v1/edits", json=fact(), headers=wait).json()
        version = http.get(job["result"]["location"]).json()
        assert (version["header"]["templates"], version["report"]["templates"]) == ("file", "file")
        corrected = fact(name="corrected", options={"steps": 4})
        job = http.post("/v1/edits", json=corrected, headers=wait).json()
        other = http.get(job["result"]["location"]).json()["header"]
        assert other["templates"] == "own"
        digests = (version["header"]["sentences"], other["sentences"])
        assert digests[0]["templates"] != digests[1]["templates"]


def test_a_model_with_a_file_that_is_not_the_nine_does_not_load_and_says_why(with_templates):
    settings = with_templates(NINE[:8])
    with running(settings) as (url, _), httpx2.Client(base_url=url, timeout=60) as http:
        for _ in range(200):
            state = http.get(f"/v1/models/{MODEL}").json()["state"]
            if state != "not_ready":
                break
            time.sleep(0.05)
        assert state == "bad_templates"
        told = http.post("/v1/edits", json=fact())
        assert told.status_code == 422 and "nine sentences" in told.json()["remedy"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"block": 99}, "unreadable_layer"),
        ({"mode": "corrected", "prompt_order": [2]}, "bad_order"),
        ({"prompt_order": [2, 2]}, "bad_order"),
        ({"prompt_order": [10]}, "bad_request"),
        ({"objective": "contrastive"}, "bad_image"),
        ({"kl": 1.0}, "bad_regulariser"),
    ],
)
def test_what_no_fit_could_write_makes_no_job(http, options, code):
    asked = fact(name="never", options={"steps": 4, "mode": "reference", **options})
    answer = http.post("/v1/edits", json=asked)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["remedy"]
    assert http.get("/v1/edits/never").status_code == 404
