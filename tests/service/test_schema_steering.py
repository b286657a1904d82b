"""A request's `steering` is built from the steerers: their keys, defaults and bounds."""

from dataclasses import MISSING, fields, replace
from importlib import import_module

import pytest
from pydantic import ValidationError

from service.schema_language import ChatBody
from service.schema_steering import ENTRIES, Together, kept_entry, methods_of
from steerers.known import STEERERS
from steerers.methods.control_vector import ControlVector
from steerers.methods.sae import SAE, SteeredFeature

SETTINGS = [(kind, f) for kind, method in STEERERS.items() for f in fields(method)]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def entries(steering):
    return ChatBody.model_validate({**CHAT, "steering": steering}).steering


def meant(steering):
    return [method for entry in entries(steering) for method, _ in methods_of(entry)]


def test_every_steerer_is_an_entry_of_the_schema():
    schema = ChatBody.model_json_schema()
    (one, *_) = schema["properties"]["steering"]["anyOf"][0]["anyOf"]
    assert set(STEERERS) | {"preset"} == set(one["discriminator"]["mapping"])


@pytest.mark.parametrize(("kind", "setting"), SETTINGS)
def test_every_setting_is_a_key_with_its_default(kind, setting):
    key = ENTRIES[kind].model_fields[setting.name]
    if setting.default is MISSING:
        assert key.is_required()
        return
    told = key.get_default(call_default_factory=True)
    assert (tuple(told) if isinstance(told, list) else told) == setting.default


@pytest.mark.parametrize("kind", STEERERS)
def test_an_example_comes_back_as_it_went(kind):
    example = import_module(STEERERS[kind].__module__).EXAMPLE
    entry = ENTRIES[kind].model_validate(told(example))
    assert methods_of(entry)[0][0] == example


def told(example):
    """As JSON has it: lists for tuples."""
    features = [vars(f) for f in getattr(example, "features", ())]
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(example).items()}
    return lists | ({"features": features} if features else {})


def test_an_entry_without_a_kind_is_of_the_steerer_whose_keys_it_has():
    feature = {"sae": "toy", "feature": 1, "strength": 2.0}
    by_feature = SAE(features=(SteeredFeature(**feature),), mode="raw")
    assert meant({"features": [feature], "mode": "raw"}) == [by_feature]
    assert meant({"kind": "sae", "features": [feature], "mode": "raw"}) == [by_feature]
    assert meant({"concept": "sea", "strength": 1}) == [SAE(concept="sea", strength=1.0)]
    by_vector = ControlVector(vector="happy@1", strength=2.0, unit="unit")
    assert meant({"vector": "happy@1", "strength": 2, "unit": "unit"}) == [by_vector]
    assert meant({"vectors": [{"name": "happy@1", "strength": 2}], "unit": "unit"}) == [by_vector]
    both = {"features": [feature], "vectors": [{"name": "a"}, {"name": "b"}], "positions": "all"}
    assert meant(both) == [
        replace(by_feature, mode="amp", positions="all"),
        ControlVector(vector="a", positions="all"),
        ControlVector(vector="b", positions="all"),
    ]
    assert isinstance(kept_entry(both), Together)
    assert entries({"preset": "winter@live"})[0].preset == "winter@live"


@pytest.mark.parametrize(
    ("steering", "path"),
    [
        ({"kind": "nothing"}, ("kind",)),
        ({"kind": "sae", "unit": "raw"}, ("unit",)),
        ([{"vector": "a"}, {"vector": "b", "sae": "toy"}], (1, "sae")),
        ({"features": [{"sae": "toy", "feature": -1}]}, ("features", 0, "feature")),
        ({"kind": "sae", "count": 6, "concept": "a"}, ("count",)),
        ({"kind": "sae", "concept": "a", "strength": "2"}, ("strength",)),
        ("winter", ()),
    ],
)
def test_what_is_wrong_is_named_by_its_path(steering, path):
    with pytest.raises(ValidationError) as caught:
        entries(steering)
    assert caught.value.errors()[0]["loc"] == ("steering", *path)


def test_null_is_not_given():
    nulls = dict.fromkeys(("steering", "edits", "compare", "stop", "n", "tools", "verbosity"))
    body = ChatBody.model_validate({**CHAT, **nulls})
    assert (body.steering, body.edits, body.compare, body.stop) == ([], [], False, None)
    asked = {"concept": "sea", "strength": 1, "sae": None, "mode": None, "vectors": None}
    assert meant(asked) == [SAE(concept="sea", strength=1.0)]


FEATURE = {"sae": "toy", "feature": 1, "strength": 2.0}
PLAN = {"source": 9, "target": 2}


@pytest.mark.parametrize(
    ("asked", "nulls"),
    [
        ({"concept": "sea", "strength": 1}, ("preset", "vector", "kind", "vectors")),
        ({"vector": "happy"}, ("concept", "mode", "preset", "features")),
        ({"features": [FEATURE]}, ("vector", "preset", "source")),
        ({"kind": "sae", "features": [FEATURE]}, ("vector", "preset")),
        ({"preset": "winter"}, ("concept", "vector", "kind")),
    ],
)
def test_a_null_has_no_say_in_what_kind_an_entry_is(asked, nulls):
    assert entries({**dict.fromkeys(nulls), **asked}) == entries(asked)


def test_a_null_has_no_say_in_what_kind_of_plan_it_is():
    def plan(told):
        return ChatBody.model_validate({**CHAT, "backpatch": told}).backpatch

    for kept in (PLAN, {"preset": "counting@live"}):
        nulls = dict.fromkeys(("preset", "source", "pairs", "kind", "concept"))
        assert plan({**nulls, **kept}) == plan(kept)
    with pytest.raises(ValidationError) as caught:
        entries({"concept": "sea", "strength": 1, "consept": None})
    assert caught.value.errors()[0]["loc"] == ("steering", "consept")
