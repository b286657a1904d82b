import pytest

from service.registry import errors
from service.registry.limits import Limits


def test_a_variant_keeps_its_edits_in_order_and_its_settings(registry, add):
    add("b"), add("a")
    settings = {"strengths": [1.0, 0.5], "steering": {"features": [7]}}
    kept = registry.variants.put(
        "acme", "kind-lm", "sd", ["b@1", "a"], actor="ann", settings=settings
    )
    assert (kept.edits, kept.model, kept.settings) == (("b@1", "a"), "sd", settings)
    assert (kept.generation, kept.changed_by) == (1, "ann")
    assert registry.variants.get("acme", "kind-lm") == kept
    again = registry.variants.put("acme", "kind-lm", "sd2", [], actor="bob", if_match=1)
    assert (again.edits, again.model, again.generation) == ((), "sd2", 2)


def test_a_variant_of_edits_that_cannot_be_used_is_refused(registry, add):
    add()
    for reference, kind in (
        ("nobody", errors.UnknownEdit),
        ("potus@2", errors.UnknownVersion),
        ("potus@live", errors.UnknownAlias),
        ("+", errors.BadReference),
    ):
        with pytest.raises(kind):
            registry.variants.put("acme", "v", "sd", ["potus@1", reference], actor="ann")
    with pytest.raises(errors.UnknownVariant):
        registry.variants.get("acme", "v")


def test_an_alias_that_a_variant_means_is_not_deleted(registry, add):
    add(), add(tenant="public")
    for tenant in ("acme", "public"):
        registry.names.move(tenant, "potus", "live", 1, "ann")
        registry.names.move(tenant, "potus", "spare", 1, "ann")
    put, delete = registry.variants.put, registry.names.delete_alias
    put("acme", "mine", "sd", ["potus"], actor="ann")
    put("other", "theirs", "sd", ["potus@spare"], actor="eve")
    for tenant, alias, user in (("acme", "live", "mine"), ("public", "spare", "theirs")):
        with pytest.raises(errors.InUse, match=f"potus@{alias} is in use by the variant {user}"):
            delete(tenant, "potus", alias, "ann")
    delete("acme", "potus", "spare", "ann")  # acme has its own: the other's variant means public's
    delete("public", "potus", "live", "ann")
    registry.variants.delete("acme", "mine", "ann")
    delete("acme", "potus", "live", "ann")


def test_a_stale_writer_loses_also_over_a_deletion(registry):
    put = registry.variants.put
    put("acme", "v", "sd", [], actor="ann", if_match=0)
    for stale in (0, 2):
        with pytest.raises(errors.AliasMoved):
            put("acme", "v", "sd", [], actor="bob", if_match=stale)
    with pytest.raises(errors.AliasMoved):
        registry.variants.delete("acme", "v", "bob", if_match=7)
    registry.variants.delete("acme", "v", "ann", if_match=1)
    with pytest.raises(errors.UnknownVariant):
        registry.variants.delete("acme", "v", "ann")
    with pytest.raises(errors.AliasMoved):
        put("acme", "v", "sd", [], actor="bob", if_match=1)
    assert put("acme", "v", "sd", [], actor="ann", if_match=0).generation == 3


def test_variants_are_listed_in_pages_of_one_tenant(registry, add):
    add()
    for name in ("c", "a", "b"):
        registry.variants.put("acme", name, "sd", ["potus"], actor="ann")
    registry.variants.put("other", "z", "sd", [], actor="eve")
    registry.variants.delete("acme", "b", "ann")
    first = registry.variants.list("acme", 1)
    assert [v.name for v in first.items] == ["a"]
    rest = registry.variants.list("acme", 5, first.next_cursor)
    assert [(v.name, v.edits) for v in rest.items] == [("c", ("potus",))]
    assert not rest.has_more
    with pytest.raises(errors.UnknownVariant):
        registry.variants.get("other", "a")


def test_variants_are_bounded(opened):
    small = opened(Limits(variants=1, variant_edits=1))
    with pytest.raises(errors.BadRecord, match="edits"):
        small.variants.put("acme", "v", "sd", ["a", "b"], actor="ann")
    with pytest.raises(errors.BadName):
        small.variants.put("acme", "V", "sd", [], actor="ann")
    with pytest.raises(errors.BadRecord, match="settings"):
        small.variants.put("acme", "v", "sd", [], actor="ann", settings={"x": float("nan")})
    small.variants.put("acme", "v", "sd", [], actor="ann")
    with pytest.raises(errors.RegistryFull):
        small.variants.put("acme", "w", "sd", [], actor="ann")
