"""Directions learned from two lists of texts: the mean of one minus the mean of the other.

The supervised baseline of SAE steering: over all tokens of the texts it is AxBench's DiffMean, over
each text's last token it is contrastive activation addition. Sums are in float64; the tokenizer's
marks do not count.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from models.hosted import HostedModel
from models.progress import Progress
from steerers.errors import TooFewTexts
from steerers.lens import language_of
from steerers.streams import Texts, read

Pool = Literal["tokens", "last"]
"""Which tokens count: all of a text, or only its last."""
_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class MeanDifference:
    """What was learned.

    Attributes:
        vectors: By site, mean of the positives - mean of the negatives.
        stream_norms: By site the mean norm of all tokens that counted.
        positives, negatives: Tokens that counted.
        cut: Texts of either side that were longer than what was read of them.
    """

    vectors: Mapping[str, Float[Tensor, " d"]]
    stream_norms: Mapping[str, float]
    positives: int
    negatives: int
    cut: tuple[int, int]
    pool: Pool


def mean_difference(
    hosted: HostedModel,
    positives: Sequence[str],
    negatives: Sequence[str],
    sites: Sequence[str],
    *,
    pool: Pool = "tokens",
    tokens: int = 128,
) -> Generator[Progress, None, MeanDifference]:
    """Learn a direction per site.

    Args:
        hosted: A model that speaks.
        positives: Texts about the concept.
        negatives: Texts that are not.
        sites: Streams, all learned in one reading.
        pool: Which tokens of a text count.
        tokens: Where longer texts are cut.

    Raises:
        TooFewTexts: One side has no token that counts.
        UnknownSite: The model has no such stream.
    """
    language_of(hosted, "control_vector")
    total = len(positives) + len(negatives)
    above, done = _Sum(sites), 0
    for some in read(hosted, positives, sites, tokens, _TOKENS_AT_ONCE):
        above.add(some, pool)
        done += len(some.index)
        yield Progress(stage="positives", done=done, total=total)
    below = _Sum(sites)
    for some in read(hosted, negatives, sites, tokens, _TOKENS_AT_ONCE):
        below.add(some, pool)
        done += len(some.index)
        yield Progress(stage="negatives", done=done, total=total)
    for side, found in (("positive", above), ("negative", below)):
        if not found.count:
            raise TooFewTexts(f"No token of the {side} texts counts.")
    both = above.count + below.count
    return MeanDifference(
        vectors={s: (above.mean(s) - below.mean(s)).float() for s in sites},
        stream_norms={s: (above.norms[s] + below.norms[s]) / both for s in sites},
        positives=above.count,
        negatives=below.count,
        cut=(above.cut, below.cut),
        pool=pool,
    )


class _Sum:
    """Of the tokens that counted, in float64."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.sums: dict[str, Tensor] = {}
        self.norms = dict.fromkeys(sites, 0.0)
        self.count = self.cut = 0

    def add(self, some: Texts, pool: Pool) -> None:
        """Some texts more."""
        meant = some.meant if pool == "tokens" else _last_of(some.meant)
        self.count += int(meant.sum())
        self.cut += some.cut
        for site, stream in some.streams.items():
            counted = stream.cpu()[meant].double()
            self.sums[site] = self.sums.get(site, torch.zeros(())) + counted.sum(0)
            self.norms[site] += float(counted.norm(dim=-1).sum())

    def mean(self, site: str) -> Float[Tensor, " d"]:
        return self.sums[site] / self.count


def _last_of(meant: Tensor) -> Tensor:
    """Only the last token of each row that counts."""
    behind = meant.flip(1).cumsum(1).flip(1)
    return meant & (behind == 1)
