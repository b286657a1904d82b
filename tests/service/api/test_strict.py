"""Nothing is said twice, nothing is promised that is not kept, and only JSON is read as JSON."""

import pytest

MODEL = "tiny"
PICTURE = {"model": MODEL, "prompt": "a cup", "steps": 1}
DRAW = "/v1/images/generations"
KIND = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ('{"model": "tiny", "prompt": "a cup", "seed": 1, "seed": 2}', "seed"),
        ('{"model": "tiny", "prompt": "a", "edits": [{"name": "a", "name": "b"}]}', "name"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(http, raw, key):
    answer = http.post(DRAW, content=raw, headers=KIND)
    told = answer.json()["error"]
    assert (answer.status_code, told["code"], told["param"]) == (422, "sent_twice", key)


def test_a_query_that_is_there_twice_is_refused(http):
    answer = http.get("/v1/edits?limit=1&limit=2")
    assert (answer.status_code, answer.json()["param"]) == (422, "limit")


@pytest.mark.parametrize(
    ("twice", "param"), [({"name": ["a", "b"]}, "name"), ({"replaces": ["a", "b"]}, "replaces")]
)
def test_a_form_field_that_is_there_twice_is_refused_unless_it_is_a_list(http, twice, param):
    form = {"name": "a", "model": MODEL, **twice}
    answer = http.post("/v1/edits/import", data=form, files={"file": b"x"})
    told = answer.json()
    # A list arrives as one: it is refused for what it names, which is not there.
    assert told["code"] == ("sent_twice" if param == "name" else "unknown_edit"), told
    assert told["param"] == (param if param == "name" else told["param"])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("path", [DRAW, "/v1/edits"])
def test_only_json_is_read_as_json(http, kind, path):
    raw = '{"model": "tiny", "prompt": "a cup", "name": "a", "target": "b", "steps": 1}'
    answer = http.post(path, content=raw, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.text


@pytest.mark.parametrize(
    "path", [DRAW, "/v1/images/lens", "/v1/chat/completions", "/v1/completions", "/v1/keys"]
)
def test_a_call_that_keeps_no_answers_refuses_an_idempotency_key(http, path):
    answer = http.post(path, json=PICTURE, headers={"Idempotency-Key": "one"})
    told = answer.json().get("error") or answer.json()
    assert (answer.status_code, told["code"], told["param"]) == (
        422,
        "not_offered",
        "Idempotency-Key",
    )


@pytest.mark.parametrize(
    ("verb", "path", "takes"),
    [
        ("PATCH", "/v1/edits/a/aliases/live", "DELETE, GET, PUT"),
        ("GET", DRAW, "POST"),
        ("POST", "/livez", "GET"),
    ],
)
def test_a_verb_that_a_path_does_not_take_is_told_which_it_takes(http, verb, path, takes):
    answer = http.request(verb, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, takes)
    assert takes in answer.text
