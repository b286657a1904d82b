import inspect
import pickle

import pytest

import models.errors as tree
from models.errors import PatchNotApplied, Refusal

KINDS = [k for _, k in inspect.getmembers(tree, inspect.isclass) if issubclass(k, Refusal)]


def asked(parameter):
    """Whether a caller must give it: what has a default is looked at as it stands."""
    return parameter.name != "self" and parameter.default is inspect.Parameter.empty


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not Refusal])
def test_every_refusal_says_what_is_wrong_and_what_to_do(kind):
    values = {"rows": frozenset({1}), "planned": 1, "changed": 0, "tokens": 90, "limit": 75}
    values |= {"height": 3, "width": 5, "multiple": 8, "times": 2, "layer": 9, "ordinary": 8}
    values |= {"places": 2, "pictures": 3}
    wanted = inspect.signature(kind.__init__).parameters.values()
    given = {each.name: values.get(each.name, "something") for each in wanted if asked(each)}
    error = kind(**given)
    assert error.problem == str(error)
    assert error.problem.endswith((".", "something"))
    assert error.remedy
    assert kind.code == error.code == kind.code.lower()
    assert not kind.__doc__.isspace()


def test_a_code_is_the_name_in_snake_case():
    assert PatchNotApplied.code == "patch_not_applied"
    assert Refusal.code == "refusal"


def test_a_refusal_survives_the_way_to_another_process():
    error = PatchNotApplied(frozenset({2}), "text.block.0", 77, 0)
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is PatchNotApplied
    assert (str(back), back.remedy, back.rows, back.changed) == (
        str(error),
        error.remedy,
        error.rows,
        0,
    )
