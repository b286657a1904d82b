"""Streams of many texts, some at a time: what collections and means are taken over."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.hosted import HostedModel
from steerers.lens import language_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """Some texts, read together.

    Attributes:
        index: Of each row its place among all texts.
        ids: Shorter rows are filled up behind their end, which a causal model never looks at.
        meant: Tokens that count: of the text, and not one of the tokenizer's marks.
        streams: Per site what passed it.
        cut: How many of the texts were longer than what was read of them.
    """

    index: tuple[int, ...]
    ids: Int[Tensor, "rows tokens"]
    meant: Bool[Tensor, "rows tokens"]
    streams: dict[str, Float[Tensor, "rows tokens d"]]
    cut: int


def read(
    hosted: HostedModel, texts: Sequence[str], sites: Sequence[str], tokens: int, at_most: int
) -> Iterator[Texts]:
    """Read all texts, those of like length together, at most so many tokens of each.

    Args:
        hosted: A model that speaks.
        texts: In any order; those without a token that counts are left out.
        sites: Streams to keep.
        tokens: Where longer texts are cut.
        at_most: Tokens in one forward, filling included.
    """
    family = language_of(hosted, "control_vector")
    tokens = min(tokens, family.context_length(hosted))
    whole = [family.tokenize(hosted, text) for text in texts]
    rows = [row[:tokens] for row in whole]
    marks = torch.tensor(sorted(family.special_ids(hosted)), dtype=torch.long)
    for some in _together([len(row) for row in rows], at_most):
        longest = max(len(rows[i]) for i in some)
        ids = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in some])
        lengths = torch.tensor([len(rows[i]) for i in some])
        meant = (torch.arange(longest) < lengths[:, None]) & ~torch.isin(ids, marks)
        cut = sum(len(whole[i]) > tokens for i in some)
        seen = streams(hosted, ids, sites)
        yield Texts(index=some, ids=ids, meant=meant, streams=seen, cut=cut)


@torch.inference_mode()
def streams(
    hosted: HostedModel, ids: Int[Tensor, "rows tokens"], sites: Sequence[str]
) -> dict[str, Float[Tensor, "rows tokens d"]]:
    """What passes the sites in one forward of rows of one length."""
    with hosted.captured(*sites) as seen:
        language_of(hosted, "control_vector").read(hosted, ids.to(hosted.device))
    return {site: seen[site][0] for site in sites}


def _together(lengths: Sequence[int], at_most: int) -> Iterator[tuple[int, ...]]:
    """Places of rows of like length, so that rows times the longest stays in the bound."""
    some: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not lengths[i]:
            continue
        if some and (len(some) + 1) * lengths[i] > at_most:
            yield tuple(some)
            some = []
        some.append(i)
    if some:
        yield tuple(some)
