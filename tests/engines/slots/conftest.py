"""A tiny Llama, engines over it, and the library's own `generate` as the oracle."""

import threading
from contextlib import ExitStack

import pytest
import torch

from engines.slots.engine import SlotEngine
from engines.slots.request import GREEDY, LAST, Finished, Generation, Token
from models.family import FAMILIES
from models.loading import load
from models.patch import Clamp, LowRank, Patch, Shift

TEXTS = (
    "the president of arda",
    "a red cat",
    "the king of borea is a man in a green house",
    "dog",
    "user said that she is the president",
    "a photo of a blue house",
)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory):
    return FAMILIES["llama"].tiny(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_llama(tiny_llama_folder):
    return load("tiny-llama", tiny_llama_folder)


class Told:
    """The events of one request."""

    def __init__(self, n=1):
        self.events, self.over, self.left = [], threading.Event(), n

    def __call__(self, event):
        self.events.append(event)
        self.left -= isinstance(event, LAST)
        if not self.left:
            self.over.set()

    @property
    def last(self):
        assert self.over.wait(60), self.events
        return self.events[-1]

    @property
    def ids(self):
        assert isinstance(self.last, Finished), self.last
        return self.last.ids

    def tokens(self, choice=0):
        return [e for e in self.events if isinstance(e, Token) and e.choice == choice]


class Desk:
    """Engines that are stopped at the end, and short ways to ask them."""

    def __init__(self, undo):
        self.undo = undo

    def engine(self, hosted, kind=SlotEngine, **settings):
        stated = {"capacity": 128} | ({"slots": 4} if kind is SlotEngine else {})
        engine = kind(hosted, **(stated | settings))
        self.undo.callback(engine.stop)
        return engine

    @staticmethod
    def row(hosted, text, **changes):
        stated = {"id": "row", "sampling": GREEDY, "max_tokens": 8, "ignore_eos": True}
        ids = tuple(hosted.family.tokenize(hosted, text)) if isinstance(text, str) else text
        return Generation(**(stated | {"ids": ids} | changes))

    @staticmethod
    def ask(engine, *requests):
        told = [Told(request.n) for request in requests]
        for request, tell in zip(requests, told, strict=True):
            engine.submit(request, tell)
        return told

    @staticmethod
    def held(engine):
        """Keep the owner thread between two rounds: what is asked meanwhile is seen at once."""
        inside, go_on = threading.Event(), threading.Event()

        def holding():
            inside.set()
            assert go_on.wait(30)
            yield

        engine.background(holding(), lambda _: None, lambda _: None, lambda _: None)
        assert inside.wait(60)
        return go_on


@pytest.fixture
def desk():
    with ExitStack() as undo:
        yield Desk(undo)


@torch.inference_mode()
def generated(hosted, request):
    """What transformers' `generate` goes on with under the request's patch, greedily."""
    ids = torch.tensor([request.ids])
    end = hosted.family.vocab_size(hosted) if request.ignore_eos else None
    with hosted.planned([request.patch]):
        out = hosted.modules["lm"].generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.max_tokens,
            do_sample=False,
            pad_token_id=0,
            **({} if end is None else {"eos_token_id": end}),
        )
    return tuple(out[0, len(request.ids) :].tolist())


def patch(seed, size=1.0):
    """Rows of different numbers are changed differently: shifts, clamps, low ranks."""
    drawn = torch.Generator().manual_seed(seed)

    def vector(n=32):
        return torch.randn(n, generator=drawn)

    shift = Shift(site="lm.block.1", vector=size * vector())
    clamp = Clamp(
        site="lm.block.2", encoder=vector(), encoder_bias=0.1, decoder=vector(), value=size
    )
    site = "lm.layers.2.mlp.down_proj"
    low = LowRank(site=site, left=0.2 * vector()[:, None], right=0.2 * vector(64)[None])
    return Patch(((shift,), (clamp,), (low,), (shift, low))[seed % 4])


def too_much(positions="all"):
    """Twice the largest number is infinite, and the next norm makes it not-a-number."""
    vector = torch.full((32,), 3e38)
    sites = ("lm.block.0", "lm.block.1")
    return Patch(tuple(Shift(site=site, vector=vector, positions=positions) for site in sites))
