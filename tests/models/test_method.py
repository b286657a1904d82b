import sys
from dataclasses import FrozenInstanceError

import pytest

from models.method import Method, discover

MODULE = """
from dataclasses import dataclass
from typing import Literal
from models.method import Method
@dataclass(frozen=True, kw_only=True)
class {name}(Method):
    steps: int = 3
    kind: Literal["{kind}"] = "{kind}"
METHOD = {name}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "found_by_being_there"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "b.py").write_text(MODULE.format(name="Zebra", kind="zebra"))
    (folder / "c.py").write_text(MODULE.format(name="Ape", kind="ape"))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("found_by_being_there")
    yield sys.modules["found_by_being_there"]
    for name in [n for n in sys.modules if n.startswith("found_by_being_there")]:
        del sys.modules[name]


def test_methods_are_found_by_being_there_and_sorted_by_kind(package):
    found = discover(package)
    assert list(found) == ["ape", "zebra"]
    assert all(issubclass(method, Method) for method in found.values())


def test_a_method_is_frozen_settings(package):
    settings = discover(package)["ape"](steps=5)
    assert settings.steps == 5
    with pytest.raises(FrozenInstanceError):
        settings.steps = 6


def test_a_module_without_a_method_is_a_mistake_that_is_heard(package, tmp_path):
    (tmp_path / "found_by_being_there" / "d.py").write_text("")
    with pytest.raises(AttributeError, match="METHOD"):
        discover(package)
