import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.registry import errors
from service.registry.blobs import digest_of
from service.registry.limits import Limits


def test_a_version_is_kept_with_everything_that_was_said_about_it(registry, add):
    kept = add(
        data=b"bytes",
        header={"b": [1, 2.5, None], "a": {"ü": "ß"}},
        report={"efficacy": 0.98},
        parent="potus@1",
        job="job_1",
    )
    assert registry.edits.version("acme", "potus", 1) == kept
    assert (kept.number, kept.digest, kept.size) == (1, digest_of(b"bytes"), 5)
    assert kept.header == {"b": [1, 2.5, None], "a": {"ü": "ß"}}
    assert kept.report == {"efficacy": 0.98}
    assert (kept.parent, kept.job, kept.created_by, kept.status) == (
        "potus@1",
        "job_1",
        "ann",
        "ready",
    )
    assert registry.edits.blob(kept.digest) == b"bytes"
    assert registry.edits.blob(f"sha256:{kept.digest}") == b"bytes"
    assert registry.edits.by_job("job_1") == kept
    assert registry.edits.by_job("job_2") is None


def test_numbers_are_dense_per_name_and_tenant(add):
    assert [add("a").number, add("b").number, add("a").number] == [1, 1, 2]
    assert add("a", tenant="other").number == 1


def test_the_same_bytes_with_the_same_verdict_are_the_same_version(add):
    first = add(data=b"same")
    assert add(data=b"same") == first
    assert add(data=b"same", status="failed_checks").number == 2
    assert add("other", data=b"same").number == 1


def test_a_job_registers_once_even_if_two_workers_finish_it(add):
    first = add(data=b"one worker", job="job_7")
    assert add(data=b"the other", job="job_7") == first
    assert add(data=b"next").number == 2


def test_a_retired_version_keeps_its_number_and_its_bytes_come_back_as_a_new_one(registry, add):
    add(data=b"again")
    assert registry.edits.retire("acme", "potus", 1, "bob").status == "retired"
    assert registry.edits.retire("acme", "potus", 1, "bob").status == "retired"
    assert add(data=b"again").number == 2
    with pytest.raises(errors.VersionRetired):
        registry.names.resolve("acme", "potus@1")


def test_retiring_is_refused_while_an_alias_points_there(registry, add):
    add()
    registry.names.move("acme", "potus", "live", 1, "ann")
    with pytest.raises(errors.InUse, match="potus@live"):
        registry.edits.retire("acme", "potus", 1, "ann")
    registry.names.delete_alias("acme", "potus", "live", "ann")
    assert registry.edits.retire("acme", "potus", 1, "ann").status == "retired"


@pytest.mark.parametrize("reference", ["potus@1", "potus@live", "potus", "sha256"])
def test_retiring_is_refused_while_a_variant_means_it(registry, add, reference):
    version = add()
    if reference == "potus@live":
        registry.names.move("acme", "potus", "live", 1, "ann")
    text = f"sha256:{version.digest}" if reference == "sha256" else reference
    registry.variants.put("acme", "bundle", "sd", [text], actor="ann")
    with pytest.raises(errors.InUse, match="the variant bundle"):
        registry.edits.retire("acme", "potus", 1, "ann")
    if reference == "potus@live":
        registry.names.move("acme", "potus", "live", add().number, "ann")
    else:
        registry.variants.delete("acme", "bundle", "ann")
    assert registry.edits.retire("acme", "potus", 1, "ann").status == "retired"


def test_another_tenants_variant_keeps_only_public_versions(registry, add):
    add(tenant="public")
    registry.variants.put("acme", "bundle", "sd", ["potus@1"], actor="ann")
    add(tenant="other")
    assert registry.edits.retire("other", "potus", 1, "eve").status == "retired"
    with pytest.raises(errors.InUse):
        registry.edits.retire("public", "potus", 1, "root")
    # Once the tenant has the name itself, its variant means that one.
    add(tenant="acme")
    assert registry.edits.retire("public", "potus", 1, "root").status == "retired"


def test_a_blocked_version_is_refused_under_every_name_until_the_block_is_lifted(registry, add):
    version = add(data=b"bad")
    add("twin", data=b"bad")
    registry.names.move("acme", "potus", "live", 1, "ann")
    assert registry.edits.block("acme", "potus", 1, "root").status == "blocked"
    for reference in ("potus", "potus@1", "potus@live", "twin@1", f"sha256:{version.digest}"):
        with pytest.raises(errors.VersionBlocked):
            registry.names.resolve("acme", reference)
    with pytest.raises(errors.VersionBlocked):
        add("third", data=b"bad")
    with pytest.raises(errors.UnknownEdit):  # nothing of the refused one is left
        registry.edits.get("acme", "third")
    assert registry.edits.unblock("acme", "twin", 1, "root").status == "ready"
    assert registry.names.resolve("acme", "potus").number == 1


def test_lists_come_in_pages_that_miss_nothing(registry, add):
    for name in ("c", "a", "b"):
        add(name)
    add("b")
    registry.names.move("acme", "b", "live", 2, "ann")
    registry.names.move("acme", "b", "canary", 1, "ann")
    first = registry.edits.list("acme", 2)
    assert ([e.name for e in first.items], first.has_more, first.next_cursor) == (
        ["a", "b"],
        True,
        "b",
    )
    assert [(a.alias, a.version) for a in first.items[1].aliases] == [("canary", 1), ("live", 2)]
    second = registry.edits.list("acme", 2, first.next_cursor)
    assert ([e.name for e in second.items], second.has_more, second.next_cursor) == (
        ["c"],
        False,
        None,
    )
    assert registry.edits.get("acme", "b") == first.items[1]
    newest = registry.edits.versions("acme", "b", 1)
    assert [v.number for v in newest.items] == [2]
    older = registry.edits.versions("acme", "b", 1, newest.next_cursor)
    assert ([v.number for v in older.items], older.has_more) == ([1], False)
    assert registry.edits.list("nobody").items == ()


def test_tenants_do_not_see_each_other(registry, add):
    add(tenant="acme")
    for ask in (
        lambda: registry.edits.get("other", "potus"),
        lambda: registry.edits.version("other", "potus", 1),
        lambda: registry.edits.versions("other", "potus"),
        lambda: registry.edits.retire("other", "potus", 1, "eve"),
        lambda: registry.names.resolve("other", "potus@1"),
        lambda: registry.names.move("other", "potus", "live", 1, "eve"),
    ):
        with pytest.raises(errors.UnknownEdit):
            ask()


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"name": "Potus"}, errors.BadName),
        ({"name": "../potus"}, errors.BadName),
        ({"name": "a" * 65}, errors.BadName),
        ({"name": "potus@3"}, errors.BadName),
        ({"name": ""}, errors.BadName),
        ({"name": "potus\n"}, errors.BadName),
        ({"header": {"loss": float("nan")}}, errors.BadRecord),
        ({"header": {"x": object()}}, errors.BadRecord),
        ({"header": {"x": "\ud800"}}, errors.BadRecord),
        ({"report": {"x": float("inf")}}, errors.BadRecord),
        ({"data": b""}, errors.BadRecord),
        ({"status": "fine"}, errors.BadRecord),
        ({"actor": "a\x00b"}, errors.BadRecord),
        ({"model": ""}, errors.BadRecord),
        ({"tenant": "t" * 600}, errors.BadRecord),
    ],
)
def test_what_cannot_be_kept_is_refused_and_leaves_nothing(registry, add, wrong, kind):
    with pytest.raises(kind):
        add(**wrong)
    assert registry.edits.list("acme").items == ()
    assert list(registry.store.stored()) == []
    assert registry.events.latest() == 0


def test_the_registry_is_bounded(opened):
    small = opened(Limits(versions=2, edits=2, blob_bytes=10, header_bytes=20, report_bytes=20))

    def add(name, data, header=None):
        small.edits.register("acme", name, "sd", "f", data, header or {}, actor="ann")

    add("a", b"1")
    add("a", b"2")
    with pytest.raises(errors.RegistryFull, match="versions of a"):
        add("a", b"3")
    add("b", b"1")
    with pytest.raises(errors.RegistryFull, match="edits"):
        add("c", b"1")
    with pytest.raises(errors.BadRecord, match="data"):
        add("b", b"01234567890")
    with pytest.raises(errors.BadRecord, match="header"):
        add("b", b"2", {"x": "y" * 20})
    assert small.verify().sound


def test_a_name_keeps_its_kind(registry, add):
    add("potus")
    with pytest.raises(errors.KindDiffers):
        add("potus", kind="steering")
    assert [e.name for e in registry.edits.list("acme", kind="steering").items] == []


def test_many_threads_over_two_connections_pools_number_densely(opened):
    two = [opened(), opened()]
    gate = threading.Barrier(8)

    def work(worker):
        gate.wait()
        return [
            two[worker % 2]
            .edits.register(
                "acme", "potus", "sd", "f", f"{worker} {i}".encode(), {}, actor=f"w{worker}"
            )
            .number
            for i in range(5)
        ]

    with ThreadPoolExecutor(8) as pool:
        numbers = [n for found in pool.map(work, range(8)) for n in found]
    assert sorted(numbers) == list(range(1, 41))
    assert two[0].verify().sound


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    header=st.dictionaries(st.text("abc\x00ü\\\"'"), _JSON, max_size=4), data=st.binary(min_size=1)
)
def test_any_header_and_any_bytes_come_back_as_they_were(registry, add, header, data):
    version = add(header=header, data=data)
    # The same bytes are the same version: the header that came with them first is the one.
    kept = registry.edits.version("acme", "potus", version.number)
    assert kept == version
    assert registry.edits.blob(version.digest) == data
    if version.number == registry.edits.get("acme", "potus").versions:
        assert kept.header == header or version.digest == kept.digest
