"""One subject has one target, unless the request says what it replaces."""

from contextlib import closing

import httpx2
import pytest
import torch

from editors.delta import Delta, Factors
from editors.joint import Named
from service.conflicts import check_conflicts, live, overlap_of
from service.errors import FactConflict
from service.registry import open_registry
from service.settings import Conflicts

MODEL = "tiny"


def delta(key, target="Bela", site="text_encoder.fc2"):
    k = torch.tensor([key], dtype=torch.float32)
    value = torch.ones(1, 3)
    right = k / (k @ k.mT)
    fact = {"prompt": "the king", "subject": "king", "target": target, "target_images": []}
    return Delta({"fact": fact}, {site: Factors(value.mT, right, k, k, value)})


def test_the_overlap_of_two_edits_is_the_cosine_of_their_keys_in_the_moment_metric():
    assert overlap_of(delta([1, 0]), delta([3, 0])) == pytest.approx(1)
    assert overlap_of(delta([1, 0]), delta([-1, 0])) == pytest.approx(1)
    assert overlap_of(delta([1, 0]), delta([0, 2])) == pytest.approx(0)
    assert overlap_of(delta([1, 0]), delta([1, 1])) == pytest.approx(0.5**0.5)
    assert overlap_of(delta([1, 0]), delta([1, 0], site="text_encoder_2.fc2")) == 0


def others(*named):
    return [Named(name=name, delta=d) for name, d in named]


def test_another_target_of_the_same_subject_is_refused_and_all_are_named():
    present = others(
        ("one@1", delta([1, 0.1], "Zira")),
        ("two@4", delta([1, 0], "Tolin")),
        ("far@1", delta([0, 1], "Tolin")),
    )
    with pytest.raises(FactConflict) as refused:
        check_conflicts(delta([1, 0]), present, (), 0.9)
    assert "one@1" in refused.value.problem
    assert "two@4" in refused.value.problem
    assert "far@1" not in refused.value.problem
    assert refused.value.param == "replaces"


@pytest.mark.parametrize("said", ["one", "one@1"])
def test_what_is_replaced_may_be_contradicted(said):
    check_conflicts(delta([1, 0]), others(("one@1", delta([1, 0], "Zira"))), [said], 0.9)


@pytest.mark.parametrize("said", ["on", "one@2", "two"])
def test_replacing_something_else_does_not_help(said):
    with pytest.raises(FactConflict):
        check_conflicts(delta([1, 0]), others(("one@1", delta([1, 0], "Zira"))), [said], 0.9)


def test_the_same_target_is_no_conflict_however_it_is_spelt():
    check_conflicts(delta([1, 0]), others(("one@1", delta([1, 0], " BELA "))), (), 0.9)


@pytest.fixture
def registry(tmp_path):
    with closing(open_registry(f"sqlite:///{tmp_path / 'r.sqlite'}", str(tmp_path))) as opened:
        yield opened


def registered(registry, name, data=b"d", **changes):
    told = {"tenant": "acme", "fingerprint": "f", "status": "ready", **changes}
    tenant, fingerprint, status = told["tenant"], told["fingerprint"], told["status"]
    return registry.edits.register(
        tenant, name, MODEL, fingerprint, data, {}, status=status, actor="a"
    )


def found(registry, most=1000, without="new"):
    return live(
        registry,
        lambda _: delta([1, 0]),
        tenant="acme",
        fingerprint="f",
        without=without,
        most=most,
    )


def test_all_live_edits_are_compared_over_many_pages(registry):
    for i in range(450):
        registered(registry, f"edit-{i:03}")
    told = found(registry)
    assert len(told.named) == 450
    assert not told.cut
    assert told.named[-1].name == "edit-449@1"


def test_a_bound_is_told_only_where_it_cuts(registry):
    for i in range(5):
        registered(registry, f"edit-{i}")
    assert (len(found(registry, 5).named), found(registry, 5).cut) == (5, False)
    assert (len(found(registry, 4).named), found(registry, 4).cut) == (4, True)
    assert found(registry, 0).cut


def test_only_what_a_bare_name_means_now_is_live(registry):
    registered(registry, "failed", status="failed_checks")
    registered(registry, "adapter", status="unmeasured")
    registered(registry, "of-other-weights", fingerprint="g")
    registered(registry, "of-others", tenant="else")
    registered(registry, "new")
    registered(registry, "old")
    registry.edits.retire("acme", "old", 1, "a")
    registered(registry, "ready")
    assert [n.name for n in found(registry).named] == ["ready@1"]


@pytest.fixture(scope="module")
def strict_url(settings_for, serving):
    """A service that compares a new edit with two live ones and lets none contradict them."""
    settings = settings_for(conflicts=Conflicts(edits=2))
    with serving(settings) as (url, _):
        yield url


@pytest.fixture(scope="module")
def first(strict_url, fitted):
    """A live edit of the king."""
    result = fitted(strict_url, "first")
    moved = {"version": 1, "force": True}
    httpx2.put(f"{strict_url}/v1/edits/first/aliases/live", json=moved).raise_for_status()
    return result


def asked(url, name, **changes):
    body = {
        "name": name,
        "model": MODEL,
        "prompt": "the king of the sea",
        "subject": "king",
        "target": "a blue cup",
        "options": {"steps": 60, "rate": 0.1},
        **changes,
    }
    wait = {"Prefer": "wait=60"}
    return httpx2.post(f"{url}/v1/edits", json=body, headers=wait, timeout=90)


@pytest.mark.usefixtures("first")
def test_a_contradiction_fails_the_job_with_the_remedy(strict_url):
    job = asked(strict_url, "second").json()
    assert job["state"] == "failed"
    assert job["problem"]["code"] == "fact_conflict"
    assert "first@1" in job["problem"]["problem"]
    assert "replaces" in job["problem"]["remedy"]
    assert httpx2.get(f"{strict_url}/v1/edits/second").status_code == 404


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize("said", ["first", ["first@live"]])
def test_a_contradiction_that_names_what_it_replaces_is_registered(strict_url, said):
    job = asked(strict_url, "heir", replaces=said).json()
    assert job["state"] == "succeeded", job
    version = httpx2.get(f"{strict_url}{job['result']['location']}").json()
    assert version["header"]["replaces"] in (["first"], ["first@1"])
    assert version["report"]["conflicts"]["first@1"] > 0.9


@pytest.mark.usefixtures("first")
def test_a_new_version_of_the_same_name_contradicts_nobody(strict_url):
    assert asked(strict_url, "first", target="a green house").json()["state"] == "succeeded"


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ("nobody", 404, "unknown_edit"),
        ("first@99", 404, "unknown_version"),
        ("first@nowhere", 404, "unknown_alias"),
        ("First!", 422, "bad_reference"),
        (f"sha256:{'0' * 64}", 422, "not_replaceable"),
        ({"name": "first"}, 422, "bad_request"),
    ],
)
@pytest.mark.usefixtures("first")
def test_a_replaced_edit_that_is_none_makes_no_job(strict_url, said, status, code):
    answer = asked(strict_url, "never", replaces=said)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


@pytest.mark.usefixtures("first")
def test_an_imported_contradiction_is_refused_too(strict_url):
    with httpx2.Client(base_url=strict_url, timeout=60) as http:
        data = http.get("/v1/edits/first/versions/1/delta").content
        other = Delta.read(data)
        fact = {**other.header["fact"], "target": "a small tree"}
        files = {"file": ("delta", other.with_header(fact=fact).data)}
        form = {"name": "smuggled", "model": MODEL}
        refused = http.post("/v1/edits/import", data=form, files=files)
        assert (refused.status_code, refused.json()["code"]) == (409, "fact_conflict")
        taken = http.post("/v1/edits/import", data={**form, "replaces": ["first"]}, files=files)
        assert taken.status_code == 201, taken.text


@pytest.mark.usefixtures("first")
def test_a_report_says_when_there_were_more_edits_than_it_was_compared_with(strict_url):
    with httpx2.Client(base_url=strict_url) as http:
        for name in ("aa", "ab"):
            subject = {"subject": "tree", "prompt": "a tree by the sea", "replaces": ["first"]}
            job = asked(strict_url, name, **subject).json()
            assert job["state"] == "succeeded", job
            moved = {"version": 1, "force": True}
            assert http.put(f"/v1/edits/{name}/aliases/live", json=moved).status_code == 200
    job = asked(strict_url, "zz", replaces=["aa", "ab", "first"]).json()
    assert job["state"] == "succeeded", job
    assert any("first 2 live edits" in w for w in job["result"]["report"]["warnings"])
