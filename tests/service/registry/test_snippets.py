import pytest
import sqlalchemy as sa

from service.registry import errors
from service.registry.limits import Limits
from service.registry.records import FeatureSnippets
from service.registry.tables import snippet_sets, snippets

SAE, FINGERPRINT = "5" * 64, "f" * 64


def found(feature, *values, input_score=0.5):
    told = tuple({"tokens": ["the", " sea"], "values": [0.0, v]} for v in values)
    strongest = max(values)
    return FeatureSnippets(
        feature=feature, strongest=strongest, input_score=input_score, snippets=told
    )


def put(registry, *features, tenant="acme", texts=1, fingerprint=FINGERPRINT):
    kept = registry.snippets
    number = kept.begin(tenant, fingerprint, SAE, {"texts": texts}, actor="ann")
    kept.add(number, features)
    return kept.finish(number)


def of(registry, *features, tenant="acme"):
    return registry.snippets.of(tenant, FINGERPRINT, SAE, features)


def test_snippets_come_back_as_they_were_put(registry):
    put(registry, found(0, 3.0, 1.0), found(500, 2.0, input_score=None))
    assert of(registry, 0, 1, 500) == {
        0: found(0, 3.0, 1.0),
        500: found(500, 2.0, input_score=None),
    }
    scores = registry.snippets.input_scores("acme", FINGERPRINT, SAE, [0, 1, 500])
    assert scores == {0: 0.5, 500: None}
    assert registry.snippets.sample("acme", FINGERPRINT, SAE).told == {"texts": 1}


def test_the_next_sample_takes_the_place_of_the_last(registry):
    put(registry, found(0, 3.0), found(1, 3.0))
    put(registry, found(0, 5.0), texts=2)
    assert of(registry, 0, 1) == {0: found(0, 5.0)}
    with registry.index.reading() as connection:
        count = sa.select(sa.func.count())
        assert connection.execute(count.select_from(snippets)).scalar() == 1
        assert connection.execute(count.select_from(snippet_sets)).scalar() == 1


def test_a_sample_that_is_not_whole_is_not_seen(registry):
    put(registry, found(0, 3.0))
    begun = registry.snippets.begin("acme", FINGERPRINT, SAE, {}, actor="ann")
    registry.snippets.add(begun, [found(0, 9.0)])
    assert of(registry, 0) == {0: found(0, 3.0)}
    registry.snippets.finish(begun)
    assert of(registry, 0) == {0: found(0, 9.0)}


def test_texts_of_a_tenant_are_its_own_and_public_ones_are_everybodys(registry):
    put(registry, found(0, 3.0), tenant="other")
    assert of(registry, 0) == {}
    assert registry.snippets.sample("acme", FINGERPRINT, SAE) is None
    put(registry, found(0, 1.0), tenant="public")
    assert of(registry, 0) == {0: found(0, 1.0)}
    put(registry, found(0, 2.0))
    assert of(registry, 0) == {0: found(0, 2.0)}


def test_snippets_are_bounded_and_audited(opened):
    registry = opened(Limits(snippets=2, snippet_sets=1))
    with pytest.raises(errors.BadRecord):
        put(registry, found(0, 3.0, 2.0, 1.0))
    put(registry, found(0, 3.0))
    put(registry, found(0, 4.0))  # takes the other's place
    with pytest.raises(errors.RegistryFull):
        put(registry, found(0, 1.0), fingerprint="e" * 64)
    assert [row.action for row in registry.audit.list("acme").items] == ["snippets.put"] * 2
