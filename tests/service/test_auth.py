"""Who may do what: keys, scopes, quotas, and the two doors that stay shut."""

import time

import httpx2
import pytest

from service.errors import OpenDoor
from service.local import running
from service.registry import open_registry
from service.schema import SCOPES
from service.settings import Quotas, Server
from service.workbench import open_home

MODEL = "tiny"
LIMIT = 20
IMAGE = {"model": MODEL, "prompt": "a cup", "seed": 1, "steps": 1}


@pytest.fixture(scope="module")
def secrets():
    """By name: the secrets of the keys that the service of this file knows."""
    return {}


@pytest.fixture(scope="module")
def guarded(settings_for, serving, secrets):
    """(url, home) of a service that wants keys, with small quotas."""
    settings = settings_for(
        server=Server(port=0, keys="required", drain_seconds=20.0),
        quotas=Quotas(requests_a_minute=LIMIT, images_a_minute=4),
    )
    settings.home.mkdir(parents=True, exist_ok=True)
    registry = open_registry(settings.index_url, settings.blobs_url)

    def make(name, scopes=SCOPES, tenant="acme", expires=None):
        secrets[name], key = registry.keys.create(tenant, scopes, expires, name, actor="test")
        return key

    for name in ("all", "busy", "artist", "neighbour"):
        make(name)
    for scope in SCOPES:
        make(scope, [scope])
    make("stranger", tenant="other")
    make("expired", expires=time.time() - 1)
    registry.keys.revoke(make("revoked").id, "test")
    registry.close()
    with serving(settings) as (url, _):
        yield url, settings.home


@pytest.fixture
def call(guarded, secrets):
    """A function: an answer to a request made with the named key."""

    def send(who, method, path, **more):
        headers = {"Authorization": f"Bearer {secrets[who]}"} if who else {}
        return httpx2.request(method, guarded[0] + path, headers=headers, timeout=30, **more)

    return send


def test_without_a_key_nothing_but_the_operators_paths_answers(call):
    answer = call(None, "GET", "/v1/edits")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    told = answer.json()
    assert told["code"] == "key_needed"
    assert "tiller keys create" in told["remedy"]
    image = call(None, "POST", "/v1/images/generations", json=IMAGE)
    assert image.status_code == 401
    assert image.json()["error"]["type"] == "authentication_error"
    for path in ("/livez", "/readyz", "/metrics"):
        assert call(None, "GET", path).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic c2s6", "Bearer sk_", f"Bearer sk_{'0' * 16}_{'x' * 43}"],
)
def test_what_is_no_key_opens_nothing(guarded, header):
    headers = {"Authorization": header}
    assert httpx2.get(f"{guarded[0]}/v1/edits", headers=headers).status_code == 401


def test_a_key_with_one_letter_changed_opens_nothing(guarded, secrets):
    wrong = secrets["all"][:-1] + ("a" if secrets["all"][-1] != "a" else "b")
    headers = {"Authorization": f"Bearer {wrong}"}
    assert httpx2.get(f"{guarded[0]}/v1/edits", headers=headers).status_code == 401


@pytest.mark.parametrize("who", ["expired", "revoked"])
def test_a_worthless_key_is_refused_like_an_unknown_one(call, who):
    answer = call(who, "GET", "/v1/edits")
    assert answer.status_code == 401
    assert answer.json()["detail"] == "The API key is not valid: unknown, expired or revoked."


def test_a_key_is_worthless_from_its_revocation_on(call, secrets):
    body = {"name": "short", "scopes": ["edits:read"]}
    made = call("keys:admin", "POST", "/v1/keys", json=body)
    assert made.status_code == 201, made.text
    assert made.headers["cache-control"] == "no-store"
    secrets["short"] = made.json()["secret"]
    assert call("short", "GET", "/v1/edits").status_code == 200
    address = f"/v1/keys/{made.json()['id']}"
    assert call("stranger", "DELETE", address).status_code == 404
    first, again = (call("keys:admin", "DELETE", address).json() for _ in range(2))
    assert first["revoked_at"] == again["revoked_at"]
    assert call("short", "GET", "/v1/edits").status_code == 401


NEEDED = [
    ("infer", "POST", "/v1/images/generations", IMAGE),
    ("edits:read", "GET", "/v1/edits", None),
    ("edits:write", "DELETE", "/v1/jobs/job_none", None),
    ("edits:write", "DELETE", "/v1/edits/nobody/versions/1", None),
    ("edits:promote", "PUT", "/v1/edits/nobody/aliases/live", {"version": 1}),
    ("edits:promote", "DELETE", "/v1/variants/nobody", None),
    ("keys:admin", "GET", "/v1/keys", None),
    ("audit:read", "GET", "/v1/audit", None),
]


@pytest.mark.parametrize(("scope", "method", "path", "body"), NEEDED)
def test_each_path_needs_its_own_scope(call, scope, method, path, body):
    assert call(scope, method, path, json=body).status_code in (200, 404)
    other = "audit:read" if scope != "audit:read" else "keys:admin"
    answer = call(other, method, path, json=body)
    assert answer.status_code == 403
    told = answer.json().get("error") or answer.json()
    assert told["code"] == "scope_missing"
    assert scope in (told.get("remedy") or told["message"])


def test_a_tenant_does_not_see_anothers_names(call):
    variant = {"model": MODEL, "edits": []}
    assert call("all", "PUT", "/v1/variants/ours", json=variant).status_code == 200
    assert call("neighbour", "GET", "/v1/variants/ours").status_code == 200
    assert call("stranger", "GET", "/v1/variants/ours").status_code == 404
    assert call("stranger", "GET", "/v1/keys").json()["data"][0]["tenant"] == "other"


def test_a_used_quota_is_a_429_with_a_time_and_does_not_touch_other_keys(call):
    answers = []
    while len(answers) < 3 * LIMIT and not (answers and answers[-1].status_code == 429):
        answers.append(call("busy", "GET", "/v1/models"))
    refused = answers.pop()
    assert refused.status_code == 429
    assert len(answers) >= LIMIT  # a window that slides frees some meanwhile
    assert {a.status_code for a in answers} == {200}
    assert answers[0].headers["x-ratelimit-limit-requests"] == str(LIMIT)
    assert answers[-1].headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["code"] == "quota_used"
    assert call("neighbour", "GET", "/v1/models").status_code == 200


def test_pictures_are_counted_one_by_one_and_a_refusal_uses_nothing_up(call):
    path = "/v1/images/generations"
    assert call("artist", "POST", path, json={**IMAGE, "n": 3}).status_code == 200
    two = call("artist", "POST", path, json={**IMAGE, "n": 2})
    assert two.status_code == 429
    assert int(two.headers["retry-after"]) >= 1
    one = call("artist", "POST", path, json=IMAGE)
    assert one.status_code == 200
    assert one.headers["x-ratelimit-remaining-images"] == "0"


def test_no_file_of_the_service_holds_a_secret(guarded, secrets, call):
    call("all", "GET", "/v1/edits")
    files = [f for f in guarded[1].rglob("*") if f.is_file()]
    assert any(f.name.startswith("registry.sqlite") for f in files)
    for file in files:
        data = file.read_bytes()
        assert not any(secret[20:].encode() in data for secret in secrets.values()), file
    listed = call("all", "GET", "/v1/keys").text
    assert not any(secret[20:] in listed for secret in secrets.values())


def test_a_service_for_others_does_not_start_without_a_key(settings_for):
    settings = settings_for(server=Server(host="0.0.0.0", port=0))  # noqa: S104 - refused
    with pytest.raises(OpenDoor) as refused, running(settings):
        pass
    assert "tiller keys create" in refused.value.remedy


def test_a_service_for_others_does_not_start_when_its_only_key_is_worthless(settings_for):
    settings = settings_for(server=Server(host="0.0.0.0", port=0))  # noqa: S104 - refused
    settings.home.mkdir(parents=True, exist_ok=True)
    registry = open_registry(settings.index_url, settings.blobs_url)
    registry.keys.create("acme", SCOPES, time.time() - 1, "old", actor="test")
    with pytest.raises(OpenDoor):
        open_home(settings)
    registry.keys.create("acme", SCOPES, None, "new", actor="test")
    registry.close()
    open_home(settings).close()


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8311", "127.0.0.1.evil.example", ""]
)
def test_a_keyless_service_does_not_answer_to_a_name_that_is_not_its_own(url, name):
    answer = httpx2.get(f"{url}/v1/edits", headers={"Host": name})
    assert answer.status_code == 421
    assert answer.json()["code"] == "strange_host"
    image = httpx2.post(f"{url}/v1/images/generations", json=IMAGE, headers={"Host": name})
    assert image.status_code == 421


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8311"])
def test_a_keyless_service_answers_to_its_own_names(url, name):
    assert httpx2.get(f"{url}/v1/edits", headers={"Host": name}).status_code == 200
