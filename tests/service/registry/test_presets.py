import json

import pytest

from service.registry import errors


def test_a_preset_is_versioned_aliased_and_content_addressed(registry):
    def put(body, name="cheerful"):
        return registry.presets.put(
            "acme", "steering", name, "lm", "f", body, actor="ann", report={"score": 0.7}
        )

    first = put({"strength": 4, "features": [1, 2]})
    assert put({"features": [1, 2], "strength": 4}) == first  # the order of keys is no content
    second = put({"features": [1], "strength": 4})
    assert (first.number, second.number, second.kind) == (1, 2, "steering")
    assert second.header == {"features": [1], "strength": 4}
    assert json.loads(registry.edits.blob(second.digest)) == second.header
    registry.names.move("acme", "cheerful", "live", 1, "ann")
    assert registry.names.resolve("acme", "cheerful@live") == first
    assert [e.name for e in registry.presets.list("acme", "steering").items] == ["cheerful"]
    assert registry.presets.list("acme", "backpatch").items == ()
    assert registry.edits.list("acme").items == ()


def test_presets_and_edits_share_one_set_of_names(registry, add):
    add("potus")
    with pytest.raises(errors.KindDiffers):
        registry.presets.put("acme", "steering", "potus", "lm", "f", {}, actor="ann")
    with pytest.raises(errors.KindDiffers):
        registry.presets.put("acme", "edit", "other", "lm", "f", {}, actor="ann")


def test_a_vector_that_a_preset_keeps_is_not_retired(registry, add):
    vector = add("happy", kind="vector")
    body = {"vectors": [{"name": f"sha256:{vector.digest}", "strength": 1.0}]}
    preset = registry.presets.put("acme", "steering", "cheerful", "lm", "f", body, actor="ann")
    with pytest.raises(errors.InUse, match="cheerful@1"):
        registry.edits.retire("acme", "happy", 1, "ann")
    registry.edits.retire("acme", "cheerful", preset.number, "ann")
    assert registry.edits.retire("acme", "happy", 1, "ann").status == "retired"


def test_the_newest_of_each_name_says_what_it_is_in_pages(registry):
    def put(name, kind="steering", tenant="acme", **body):
        registry.presets.put(tenant, kind, name, "lm", "f", body, actor="ann")

    put("b", n=1)
    put("b", n=2)
    put("a", n=3)
    put("c", n=4)
    put("d", kind="backpatch", n=5)
    put("a", tenant="other", n=6)
    first = registry.presets.newest("acme", "steering", 2)
    assert [(one.name, one.number, one.header["n"]) for one in first.items] == [
        ("c", 1, 4),
        ("a", 1, 3),
    ]
    assert first.has_more and first.items[0].model == "lm" and first.items[0].created_by == "ann"
    second = registry.presets.newest("acme", "steering", 2, first.next_cursor)
    assert [(one.name, one.number) for one in second.items] == [("b", 2)] and not second.has_more
    with pytest.raises(errors.BadPage):
        registry.presets.newest("acme", "steering", 2, "b")


def test_the_newest_are_picked_by_model_and_by_what_they_say_they_are(registry):
    for name, model, kind in (
        ("a", "lm", "one_two"),
        ("b", "lm", "onextwo"),
        ("c", "sd", "one_two"),
    ):
        registry.presets.put("acme", "steering", name, model, "f", {"kind": kind}, actor="ann")

    def names(**asked):
        return [one.name for one in registry.presets.newest("acme", "steering", **asked).items]

    assert names(model="lm") == ["b", "a"] and names(told="one_two") == ["c", "a"]
    assert names(model="sd", told="one_two") == ["c"] and names(told="none") == []
