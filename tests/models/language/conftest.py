"""Toys of all decoder families, and the library's own greedy answers."""

import pytest
import torch

from models.family import FAMILIES
from models.language import Language
from models.loading import load

KINDS = sorted(
    kind
    for kind, family in FAMILIES.items()
    if isinstance(family, Language) and family.writing == "slots"
)


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """The folder of a kind's toy, written once."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            folders[kind] = FAMILIES[kind].tiny(tmp_path_factory.mktemp(kind))
        return folders[kind]

    return folder


@pytest.fixture(scope="session")
def hosted_toy(toy_folder):
    """A hosted toy by kind."""
    hosted = {}

    def toy(kind):
        if kind not in hosted:
            hosted[kind] = load(f"tiny-{kind}", toy_folder(kind))
        return hosted[kind]

    yield toy
    for model in hosted.values():
        model.close()


@pytest.fixture(params=KINDS)
def hosted(request, hosted_toy):
    return hosted_toy(request.param)


def prompt(hosted, length: int, seed: int = 0) -> list[int]:
    """Random ids that no tokenizer would write."""
    generator = torch.Generator().manual_seed(100 * length + seed)
    most = hosted.family.vocab_size(hosted)
    return torch.randint(5, most, (length,), generator=generator).tolist()


def generated(hosted, ids: list[int], tokens: int) -> list[int]:
    """The library's greedy answer, one row at a time."""
    with torch.inference_mode():
        found = hosted.modules["lm"].generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return found[0, len(ids) :].tolist()


def library_logits(hosted, ids: list[int]) -> torch.Tensor:
    """(tokens, vocab) of the library's own forward."""
    with torch.inference_mode():
        return hosted.modules["lm"](torch.tensor([ids])).logits[0].float()
