"""Tiny decoders of real classes, and small random dictionaries for their streams."""

import pytest
import torch

from models.family import FAMILIES
from models.language import Language
from models.loading import load
from steerers.activation import JumpReLU
from steerers.dictionary import Dictionary

FEATURES = 48


def _steerable(family):
    """Models that slots cannot hold are written by the library, and not steered."""
    return isinstance(family, Language) and family.applies.get("sae", "") is None


def random_dictionary(width, site="lm.block.1", features=FEATURES, seed=0, **stated):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape, spread=1.0):
        return spread * torch.randn(*shape, generator=generator)

    given = {
        "id": "toy",
        "site": site,
        "format": "test",
        "encoder": drawn(width, features, spread=0.4),
        "encoder_bias": drawn(features, spread=0.2),
        # Rows of unlike lengths: a formula that normalises them is wrong by a lot.
        "decoder": drawn(features, width, spread=0.3) * torch.linspace(0.3, 1.5, features)[:, None],
        "decoder_bias": drawn(width, spread=0.3),
        "activation": JumpReLU(threshold=torch.full((features,), 0.4)),
    }
    return Dictionary(**{**given, **stated})


@pytest.fixture(scope="session")
def dictionary_for():
    """A function: a random dictionary for a hosted decoder."""

    def made(hosted, site="lm.block.1", **stated):
        return random_dictionary(hosted.family.stream_width(hosted, "lm"), site, **stated)

    return made


@pytest.fixture(scope="session")
def decoders(tmp_path_factory):
    """A function: a tiny hosted decoder by its family's kind, made once."""
    made = {}

    def hosted(kind):
        if kind not in made:
            family = FAMILIES[kind]
            made[kind] = load(f"tiny-{kind}", family.tiny(tmp_path_factory.mktemp(kind) / kind))
        return made[kind]

    yield hosted
    for one in made.values():
        one.close()


@pytest.fixture(params=sorted(k for k, f in FAMILIES.items() if _steerable(f)))
def decoder(request, decoders):
    """Each decoder family's tiny member."""
    return decoders(request.param)


@pytest.fixture
def llama(decoders):
    return decoders("llama")


@pytest.fixture(params=["llama", "gemma2"])
def capped(request, decoders):
    """One without and one with soft-caps."""
    return decoders(request.param)
