"""Which thresholds hold: what the operator set, else what the model states, else the defaults."""

import pytest

from editors.report import Thresholds as Measured
from service.errors import BadSettings
from service.settings import Thresholds


def test_what_nobody_sets_is_as_the_report_has_it():
    assert Measured(**Thresholds().over({})) == Measured()


def test_the_model_states_what_the_operator_did_not_set():
    found = Thresholds(leak=0.2).over({"stray": 0.3, "leak": 0.4})
    assert (found["stray"], found["leak"], found["reach"]) == (0.3, 0.2, 0.5)


@pytest.mark.parametrize("stated", [{"specifity": 0.9}, {"specificity": 2}, {"stray": 0}])
def test_a_model_that_states_nonsense_is_not_hosted(stated):
    with pytest.raises(BadSettings):
        Thresholds().over(stated)
