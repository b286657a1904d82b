"""Ready means that a picture can be drawn now."""

import httpx2
import pytest


@pytest.fixture(scope="module")
def served(serving, settings_for):
    own = settings_for(model={"pixels": 16 * 32})
    with serving(own) as (url, bench), httpx2.Client(base_url=url, timeout=60) as http:
        yield http, bench


def test_a_model_whose_thread_gives_no_sign_is_not_ready(served, monkeypatch):
    http, bench = served
    assert http.get("/readyz").json() == {"status": "ready", "models": {"tiny": "ready"}}
    monkeypatch.setattr(bench.hosts["tiny"].ready.engine, "heartbeat", lambda: 1e4)
    answer = http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["models"] == {"tiny": "silent"}


def test_a_model_draws_no_larger_pictures_than_its_own_limit(served):
    http, _ = served
    asked = {"model": "tiny", "prompt": "a boat", "steps": 1}
    assert http.post("/v1/images/generations", json={**asked, "size": "16x32"}).status_code == 200
    refused = http.post("/v1/images/generations", json={**asked, "size": "32x32"})
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "size"
