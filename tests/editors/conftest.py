"""A fact about a tiny random model, and generators run to their end."""

import pytest

from editors.fact import Fact
from editors.methods.refact import Refact
from editors.moment import Corpus, MomentStore
from editors.neighbours import PhraseBanks


def _drained(work):
    try:
        while True:
            next(work)
    except StopIteration as over:
        return over.value


@pytest.fixture(scope="session")
def drained():
    """A function: what a generator returns."""
    return _drained


@pytest.fixture(scope="session")
def corpus():
    places = [f"the {a} of {b} in {c}" for a in "abcdefg" for b in "hijklm" for c in "nopq"]
    people = [f"a photo of the {who} of {where}" for who in ("king", "lord") for where in "hijk"]
    return Corpus("toy", (*places, *people))


@pytest.fixture(scope="session")
def fact():
    return Fact(prompt="the lord of arda", target="a red frog", source="a blue mug")


@pytest.fixture(scope="session")
def banks():
    return PhraseBanks(MomentStore(None))


@pytest.fixture(scope="session")
def fitted(corpus, banks):
    """A function: the delta of a short fit."""

    def fit(hosted, fact, book=None, **settings):
        method = Refact(**{"block": 1, "steps": 6, **settings})
        return _drained(method.fit(hosted, fact, banks.moments, corpus, book))

    return fit
