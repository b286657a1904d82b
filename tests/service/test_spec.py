"""/openapi.json says what is true: errors in both shapes, keys, headers."""

import pytest


@pytest.fixture(scope="module")
def told(service):
    import httpx2

    return httpx2.get(f"{service[0]}/openapi.json").json()


def shape(told, verb, path, status):
    (content,) = told["paths"][path][verb]["responses"][status]["content"].items()
    kind, body = content
    return kind, told["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]


CALLS = [
    ("post", "/v1/images/generations", 422),
    ("post", "/v1/chat/completions", 422),
    ("post", "/v1/edits", 422),
    ("get", "/v1/edits/{name}", 404),
    ("get", "/v1/models/{name}", 404),
    ("delete", "/v1/jobs/{job_id}", 404),
]


@pytest.mark.parametrize(("verb", "path", "status"), CALLS)
def test_a_refusal_has_the_shape_that_is_told(http, told, verb, path, status):
    there = path.replace("{name}", "nobody").replace("{job_id}", "nobody")
    answer = http.request(verb.upper(), there, **({"json": {}} if status == 422 else {}))
    assert answer.status_code == status
    kind, schema = shape(told, verb, path, str(status))
    assert answer.headers["content-type"] == kind
    body = answer.json()
    assert set(schema["required"]) == set(body)
    if "error" in body:
        assert set(schema["properties"]["error"]["required"]) == set(body["error"])


def test_every_call_tells_keys_refusals_and_the_requests_id(told):
    assert told["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert "HTTPValidationError" not in str(told)
    for path, verbs in told["paths"].items():
        for operation in verbs.values() if path.startswith("/v1/") else ():
            assert {"422", "4XX", "5XX"} <= set(operation["responses"])
            assert all("X-Request-Id" in r["headers"] for r in operation["responses"].values())
            assert ("security" in operation) is ("{name}.png" not in path)
    key = told["paths"]["/v1/keys"]["post"]["security"]
    assert key == [{"key": ["keys:admin"]}, {}]


def test_headers_are_told_where_they_are_honoured(told):
    def headers(verb, path):
        asked = told["paths"][path][verb].get("parameters", ())
        return {p["name"] for p in asked if p["in"] == "header"}

    alias = "/v1/edits/{name}/aliases/{alias}"
    both = {"If-Match", "If-None-Match", "Idempotency-Key"}
    assert headers("put", alias) == headers("delete", alias) == both
    assert headers("delete", "/v1/variants/{name}") == both
    assert headers("post", "/v1/edits") == {"Idempotency-Key"}
    assert headers("post", "/v1/images/generations") == headers("get", alias) == set()
    assert "412" in told["paths"][alias]["put"]["responses"]
    assert "412" not in told["paths"]["/v1/edits"]["post"]["responses"]
