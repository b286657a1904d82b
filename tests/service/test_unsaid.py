"""What nobody asks for: what the operator set, else what the model states, else the defaults."""

import pytest

from editors.report import Thresholds as Measured
from service.errors import BadSettings
from service.settings import Model, Thresholds


def test_what_nobody_sets_is_as_the_report_has_it():
    assert Measured(**Thresholds().over({})) == Measured()


def test_the_model_states_what_the_operator_did_not_set():
    found = Thresholds(leak=0.2).over({"stray": 0.3, "leak": 0.4})
    assert (found["stray"], found["leak"], found["reach"]) == (0.3, 0.2, 0.5)


@pytest.mark.parametrize("stated", [{"specifity": 0.9}, {"specificity": 2}, {"stray": 0}])
def test_a_model_that_states_nonsense_is_not_hosted(stated):
    with pytest.raises(BadSettings):
        Thresholds().over(stated)


def test_steps_and_guidance_are_the_operators_else_the_models():
    model = Model(name="m", path="p", steps=4)
    told = model.over({"steps": 9, "guidance_scale": 2.5, "refact": {"block": 0}})
    assert (told.steps, told.guidance_scale) == (4, 2.5)
    assert Model(name="m", path="p").over({}).steps is None


@pytest.mark.parametrize("stated", [{"steps": 0}, {"steps": "many"}, {"guidance_scale": -1}])
def test_a_model_that_states_no_number_of_steps_is_not_hosted(stated):
    with pytest.raises(BadSettings):
        Model(name="m", path="p").over(stated)
