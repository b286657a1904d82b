"""`Idempotency-Key`: a write that is sent twice happens once, whatever it writes."""

import threading

import httpx2
import pytest

MODEL = "tiny"


@pytest.fixture(scope="module")
def pair(url, fitted):
    """The name of an edit with two versions."""
    for target in ("a blue cup", "a green house"):
        fitted(url, "pair", target=target, options={"steps": 4})
    return "pair"


def keyed(key):
    return {"Idempotency-Key": key}


def move(http, name, version, key=None, alias="once"):
    body = {"version": version, "force": True}
    headers = keyed(key) if key else {}
    return http.put(f"/v1/edits/{name}/aliases/{alias}", json=body, headers=headers)


def test_an_alias_is_moved_once(http, pair):
    first, again = (move(http, pair, 1, "move-1") for _ in range(2))
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert again.json() == first.json()
    assert again.headers["etag"] == first.headers["etag"]
    move(http, pair, 2)
    late = move(http, pair, 1, "move-1")
    assert late.json()["version"] == 1  # the first answer, not a second move
    assert http.get(f"/v1/edits/{pair}/aliases/once").json()["version"] == 2


def test_the_same_key_for_another_version_or_place_is_refused(http, pair):
    move(http, pair, 1, "move-2")
    for answer in (move(http, pair, 2, "move-2"), move(http, pair, 1, "move-2", "elsewhere")):
        assert answer.status_code == 422
        assert answer.json()["code"] == "body_differs"
    assert http.get(f"/v1/edits/{pair}/aliases/elsewhere").status_code == 404


def test_a_rollback_that_is_sent_twice_goes_back_once(http, pair):
    for version in (1, 2, 1, 2):
        move(http, pair, version, alias="back")
    address = f"/v1/edits/{pair}/aliases/back/rollback"
    first, again = (http.post(address, headers=keyed("back-1")) for _ in range(2))
    assert first.json()["version"] == 1
    assert again.json() == first.json()
    shown = http.get(f"/v1/edits/{pair}/aliases/back").json()
    assert shown["generation"] == first.json()["generation"]


def test_an_alias_that_somebody_else_moved_may_be_tried_again_under_the_same_key(http, pair):
    etag = move(http, pair, 1, alias="race").headers["etag"]
    move(http, pair, 2, alias="race")
    headers = {**keyed("race-1"), "If-Match": etag}
    address, body = f"/v1/edits/{pair}/aliases/race", {"version": 1, "force": True}
    assert http.put(address, json=body, headers=headers).status_code == 412
    fresh = http.get(address).headers["etag"]
    assert http.put(address, json=body, headers={**headers, "If-Match": fresh}).status_code == 200


def test_an_alias_is_deleted_once(http, pair):
    move(http, pair, 1, alias="gone")
    address = f"/v1/edits/{pair}/aliases/gone"
    first, again = (http.delete(address, headers=keyed("gone-1")) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert http.delete(address).status_code == 404


def test_a_variant_is_put_once(http, pair):
    def put(edits):
        body = {"model": MODEL, "edits": edits}
        return http.put("/v1/variants/once", json=body, headers=keyed("variant-1"))

    first, again = put([f"{pair}@1"]), put([f"{pair}@1"])
    assert first.status_code == 200, first.text
    assert again.json() == first.json()
    assert http.get("/v1/variants/once").json()["generation"] == first.json()["generation"]
    assert put([f"{pair}@2"]).json()["code"] == "body_differs"
    headers = keyed("variant-2")
    gone = [http.delete("/v1/variants/once", headers=headers).status_code for _ in range(2)]
    assert gone == [200, 200]


def test_a_file_is_imported_once_whatever_boundary_it_is_sent_with(http, pair):
    data = http.get(f"/v1/edits/{pair}/versions/1/delta").content

    def send():
        files = {"file": ("delta", data)}
        form = {"name": "posted", "model": MODEL}
        return http.post("/v1/edits/import", data=form, files=files, headers=keyed("import-1"))

    first, again = send(), send()
    assert first.status_code == again.status_code == 201
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]


def test_a_key_is_never_made_under_an_idempotency_key(http):
    before = len(http.get("/v1/keys").json()["data"])
    body = {"name": "twice", "scopes": ["infer"]}
    answer = http.post("/v1/keys", json=body, headers=keyed("key-1"))
    assert (answer.status_code, answer.json()["code"]) == (422, "not_offered")
    assert len(http.get("/v1/keys").json()["data"]) == before


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_that_is_none_is_refused(http, pair, key):
    body = {"version": 1, "force": True}
    answer = http.put(f"/v1/edits/{pair}/aliases/odd", json=body, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["param"]) == (422, "Idempotency-Key")


def test_of_many_who_send_the_same_at_once_one_moves_and_none_moves_again(url, http, pair):
    before = move(http, pair, 2, alias="crowd").json()["generation"]
    answers, barrier = [], threading.Barrier(6)

    def call():
        with httpx2.Client(base_url=url, timeout=30) as own:
            barrier.wait()
            answers.append(move(own, pair, 1, "crowd-1", "crowd"))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a.status_code for a in answers} <= {200, 409}
    assert all(a.json()["code"] == "still_in_progress" for a in answers if a.status_code == 409)
    shown = http.get(f"/v1/edits/{pair}/aliases/crowd").json()
    assert (shown["version"], shown["generation"]) == (1, before + 1)
