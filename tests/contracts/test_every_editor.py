"""What must hold for every editor that is there."""

import pytest
import torch

import editors.methods
from editors.delta import Delta
from editors.fact import Fact
from editors.joint import Named, compose
from editors.known import EDITORS
from editors.moment import Corpus, MomentStore
from models.method import Method
from models.patch import Patch

CORPUS = Corpus(
    "toy", tuple(f"the {a} of {b} in {c}" for a in "abcdefg" for b in "hijklm" for c in "nopq")
)
FACT = Fact(prompt="the lord of arda", target="a red frog")


def example(kind):
    module = __import__(EDITORS[kind].__module__, fromlist=["EXAMPLE"])
    return module.EXAMPLE


@pytest.fixture(scope="module")
def fitted(tiny_sd):
    deltas = {}

    def fit(kind):
        if kind not in deltas:
            work = example(kind).fit(tiny_sd, FACT, MomentStore(None), CORPUS)
            try:
                while True:
                    next(work)
            except StopIteration as over:
                deltas[kind] = over.value
        return deltas[kind]

    return fit


def test_each_module_brings_one_editor_with_an_example():
    names = [
        p.stem for p in __import__("pathlib").Path(editors.methods.__path__[0]).glob("[a-z]*.py")
    ]
    assert len(EDITORS) >= len(names) > 0
    assert all(isinstance(example(kind), Method) and example(kind).kind == kind for kind in EDITORS)


@pytest.mark.parametrize("kind", EDITORS)
def test_its_example_changes_the_row_that_asks_and_not_the_row_beside_it(kind, tiny_sd, fitted):
    patch = compose([Named(name="e", delta=fitted(kind))]).patch
    prompts = [FACT.prompt, FACT.prompt]
    plain = tiny_sd.family.encode(tiny_sd, prompts, [Patch(), Patch()]).sequence
    mixed = tiny_sd.family.encode(tiny_sd, prompts, [patch, Patch()]).sequence
    assert float((mixed[0] - plain[0]).abs().max()) > 1e-3
    assert torch.equal(mixed[1], plain[1])


@pytest.mark.parametrize("kind", EDITORS)
def test_its_delta_survives_its_file_and_names_its_base(kind, tiny_sd, fitted):
    delta = fitted(kind)
    again = Delta.read(delta.data)
    assert again.digest == delta.digest and again.header["method"] == kind
    again.check_base(tiny_sd, "e")


@pytest.mark.parametrize("kind", EDITORS)
def test_its_fit_leaves_the_weights_alone(kind, tiny_sd, fitted):
    before = tiny_sd.weights_digest()
    fitted(kind)
    assert tiny_sd.weights_digest() == before
