"""A request's `steering` says all that the steerers can be told, in their own words."""

from dataclasses import MISSING, fields
from typing import get_args

import pytest

from service.orders import SteeringOrder
from service.schema_language import FeatureUse, SteeringSettings, VectorUse
from steerers.methods.control_vector import ControlVector
from steerers.methods.sae import SAE

ELSEWHERE = {"kind": "told by the other keys", "vector": VectorUse, "features": FeatureUse}
# A vector's strength stands with its name, a concept's beside it.
SETTINGS = [
    (method, f)
    for method in (SAE, ControlVector)
    for f in fields(method)
    if f.name not in ELSEWHERE and (method, f.name) != (ControlVector, "strength")
]


@pytest.mark.parametrize(("method", "setting"), SETTINGS)
def test_every_setting_of_a_steerer_is_a_key_with_its_default(method, setting):
    key = SteeringSettings.model_fields[setting.name]
    ordered = {f.name: f for f in fields(SteeringOrder)}[setting.name]
    told = key.get_default(call_default_factory=True)
    assert (tuple(told) if isinstance(told, list) else told) == setting.default
    assert ordered.default == setting.default is not MISSING
    choices = get_args(method.__dataclass_fields__[setting.name].type)
    if choices and all(isinstance(one, str) for one in choices):
        assert set(get_args(key.annotation)) == set(choices)
