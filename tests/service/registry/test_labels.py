import pytest

from service.registry import errors
from service.registry.limits import Limits
from service.registry.records import FeatureLabel

SAE = "5" * 64


def label(feature, text, source="people"):
    return FeatureLabel(feature=feature, label=text, source=source)


def put(registry, *labels, tenant="acme"):
    return registry.labels.put(tenant, SAE, labels, actor="ann")


def search(registry, *texts, **more):
    return registry.labels.search("acme", SAE, texts, **more)


def test_labels_are_found_by_feature_and_by_text_whatever_the_case(registry):
    assert put(registry, label(3, "Winter and SNOW"), label(8, "the sea"), label(9, "Straße")) == 3
    assert registry.labels.of("acme", SAE, [3, 4]) == {3: (label(3, "Winter and SNOW"),)}
    assert [one.feature for one in search(registry, "snow").items] == [3]
    assert [one.feature for one in search(registry, "SNOW", "sea").items] == [3, 8]
    assert [one.feature for one in search(registry, "STRASSE").items] == [9]
    assert search(registry).items == ()


def test_what_means_something_in_sql_is_only_text(registry):
    put(registry, label(1, "100% wool"), label(2, "100 wool"), label(3, "a_b"), label(4, "axb"))
    assert [one.feature for one in search(registry, "100%").items] == [1]
    assert [one.feature for one in search(registry, "a_b").items] == [3]


def test_one_source_has_one_label_and_an_empty_text_removes_it(registry):
    put(registry, label(1, "old"), label(1, "machine's", "auto"))
    put(registry, label(1, "new"))
    assert {one.label for one in registry.labels.of("acme", SAE, [1])[1]} == {"new", "machine's"}
    assert put(registry, label(1, "")) == 1
    assert registry.labels.of("acme", SAE, [1]) == {1: (label(1, "machine's", "auto"),)}
    with pytest.raises(errors.BadRecord):
        put(registry, label(1, "a"), label(1, "b"))


def test_pages_are_cut_between_features(registry):
    several = [label(f, f"snow {s}", s) for f in range(5) for s in ("people", "auto")]
    put(registry, *several)
    found, after = [], None
    while True:
        page = search(registry, "snow", limit=2, after=after)
        found += [one.feature for one in page.items]
        if not page.has_more:
            break
        after = page.next_cursor
    assert found == [f for f in range(5) for _ in range(2)]


def test_labels_of_a_tenant_are_its_own_and_public_ones_are_everybodys(registry):
    put(registry, label(1, "secret snow"), tenant="other")
    put(registry, label(2, "public snow"), tenant="public")
    assert [one.feature for one in search(registry, "snow").items] == [2]


def test_labels_are_bounded_and_audited(opened):
    registry = opened(Limits(labels=2))
    put(registry, label(1, "a"), label(2, "b"))
    with pytest.raises(errors.RegistryFull):
        put(registry, label(3, "c"))
    assert registry.labels.of("acme", SAE, [3]) == {}
    with pytest.raises(errors.BadRecord):
        put(registry, label(-1, "a"))
    (row,) = registry.audit.list("acme").items
    assert (row.action, row.detail["labels"]) == ("labels.put", 2)
