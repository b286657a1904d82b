"""What a browser on the same machine can be made to ask of a service without keys."""

import httpx2
import pytest

from service.settings import Server

PAGE = "https://evil.example"
MOVE = "/v1/edits/nobody/aliases/live/rollback"


def ask(url, method, path, **headers):
    return httpx2.request(method, f"{url}{path}", headers=headers)


@pytest.mark.parametrize(
    "path", ["/v1/edits/", "/v1/edits", "/docs", "/openapi.json", "/nothing/here"]
)
def test_a_strange_name_is_refused_before_anything_else_is_looked_at(url, path):
    answer = ask(url, "GET", path, Host="evil.example")
    assert (answer.status_code, "location" in answer.headers) == (421, False)


def test_a_last_slash_is_another_path(url):
    assert ask(url, "GET", "/v1/edits/").status_code == 404


@pytest.mark.parametrize("origin", [PAGE, "null", "http://127.0.0.1:1", "http://localhost"])
@pytest.mark.parametrize(("method", "path"), [("POST", MOVE), ("DELETE", "/v1/jobs/none")])
def test_a_page_of_another_site_changes_nothing(url, origin, method, path):
    answer = ask(url, method, path, Origin=origin)
    assert (answer.status_code, answer.json()["code"]) == (403, "strange_origin")
    assert "server.allowed_origins" in answer.json()["remedy"]


def test_a_form_of_another_site_uploads_nothing(url):
    answer = httpx2.post(
        f"{url}/v1/edits/import",
        data={"name": "a", "model": "tiny"},
        files={"file": b"x"},
        headers={"Origin": PAGE},
    )
    assert answer.status_code == 403


def test_its_own_page_and_programs_get_on(url):
    own = ask(url, "POST", MOVE, Origin=url)
    assert (own.status_code, own.json()["code"]) == (404, "unknown_edit")
    assert ask(url, "POST", MOVE).status_code == 404
    read = ask(url, "GET", "/v1/edits", Origin=PAGE)
    assert (read.status_code, "access-control-allow-origin" in read.headers) == (200, False)


def test_a_page_that_the_operator_named_may_call(settings_for, serving):
    server = Server(port=0, drain_seconds=20.0, allowed_origins=("https://notes.example",))
    with serving(settings_for(server=server)) as (url, _):
        asked = {"Access-Control-Request-Method": "POST"}
        before = ask(url, "OPTIONS", MOVE, Origin="https://notes.example", **asked)
        assert before.status_code == 200
        answer = ask(url, "POST", MOVE, Origin="https://notes.example")
        assert answer.status_code == 404
        assert answer.headers["access-control-allow-origin"] == "https://notes.example"
        assert ask(url, "POST", MOVE, Origin=PAGE).status_code == 403
        assert ask(url, "OPTIONS", MOVE, Origin=PAGE, **asked).status_code == 400


@pytest.mark.parametrize("origin", ["*", "notes.example", "https://notes.example/page"])
def test_what_is_no_origin_is_no_setting(origin):
    with pytest.raises(ValueError, match="allowed_origins"):
        Server(allowed_origins=(origin,))
