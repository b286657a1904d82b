"""Pairs of prompts in batches of one length, so that nothing is ever padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.behaviours.pairs import PairIds


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Pairs of one length.

    Attributes:
        rows: Where the pairs stand among all of them.
        weights: What each counts in a mean over all pairs.
    """

    rows: tuple[int, ...]
    clean: Int[Tensor, "rows tokens"]
    corrupted: Int[Tensor, "rows tokens"]
    correct: Int[Tensor, " rows"]
    incorrect: Int[Tensor, " rows"]
    weights: Float[Tensor, " rows"]

    def margins(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
        """The metric of each pair: logit of the correct answer minus that of the incorrect one."""
        right, wrong = self.correct[:, None], self.incorrect[:, None]
        return (logits.gather(1, right) - logits.gather(1, wrong))[:, 0]


def in_batches(
    pairs: Sequence[PairIds],
    tokens: int,
    device: torch.device,
    weights: Sequence[float] | None = None,
) -> Iterator[Batch]:
    """The pairs by length, in their order, so many tokens at a time (one pair at least).

    Args:
        pairs: Clean and corrupted prompts of equal length, pair by pair.
        tokens: At most in a batch.
        device: Of the model.
        weights: Of the pairs; left out, all count alike and sum to one.
    """
    each = weights or [1 / len(pairs)] * len(pairs)
    by_length: dict[int, list[int]] = {}
    for row, pair in enumerate(pairs):
        by_length.setdefault(len(pair.clean), []).append(row)
    for length, rows in sorted(by_length.items()):
        most = max(1, tokens // length)
        for start in range(0, len(rows), most):
            some = rows[start : start + most]
            yield Batch(
                rows=tuple(some),
                clean=torch.tensor([pairs[i].clean for i in some], device=device),
                corrupted=torch.tensor([pairs[i].corrupted for i in some], device=device),
                correct=torch.tensor([pairs[i].correct for i in some], device=device),
                incorrect=torch.tensor([pairs[i].incorrect for i in some], device=device),
                weights=torch.tensor([each[i] for i in some], device=device, dtype=torch.float64),
            )


def reference_weights(count: int, batch: int) -> list[float]:
    """What the reference's pairs count: a mean within each batch, then divided by all pairs.

    A short last batch counts too much.
    """
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    return [1 / (size * count) for size in sizes for _ in range(size)]
