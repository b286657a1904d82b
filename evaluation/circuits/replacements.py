"""What takes the place of a source's output where it is ablated.

`patching` is the corrupted run, `zero` nothing, `mean` the source's mean over real tokens of the
clean prompts, `mean-positional` the same per position, `optimal` a learned vector
(`evaluation.circuits.optimal`). `mean-reference` is what the reference's `mean` is: every
prompt's last token divided by the prompt's length, averaged over prompts and over all sources into
one shared vector, which is nearly zero.

Behind folded weights (`parity`) a head's value bias belongs to no source, so what replaces the head
keeps it: zero and the reference's mean differ there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.batches import Batch
from evaluation.circuits.points import Cost
from evaluation.circuits.written import Written, folded, run, spread

Ablation = Literal["patching", "zero", "mean", "mean-positional", "mean-reference", "optimal"]


@dataclass(frozen=True, eq=False)
class Replacement:
    """What sources write instead, in runs of a length; None stands for the corrupted run."""

    of_length: Callable[[int], Written | None]

    def differences(self, clean: Written, corrupted: Written) -> Written:
        """D: replacement minus clean output, of every source."""
        other = self.of_length(clean.embedding.shape[1])
        return (corrupted if other is None else other).minus(clean)


PATCHING = Replacement(lambda _length: None)


def replacement(
    anatomy: Anatomy,
    ablation: Ablation,
    batches: Sequence[Batch],
    cost: Cost,
    optimal: Float[Tensor, "sources d"] | None = None,
    *,
    behind_folded: bool = False,
) -> Replacement:
    """The replacement of a kind; means are over the clean prompts of the batches.

    Args:
        anatomy: Of the model.
        ablation: The kind.
        batches: The prompts.
        cost: Counts what is run for means.
        optimal: The learned vectors, for `optimal`.
        behind_folded: As zero and the reference's mean are behind folded weights.
    """
    if ablation == "patching":
        return PATCHING
    if ablation in ("zero", "optimal"):
        nothing = _nothing(anatomy, optimal, biased=behind_folded and ablation == "zero")
        return Replacement(lambda _length: nothing)
    cost.forwards += sum(len(batch.rows) for batch in batches)
    if ablation == "mean-reference":
        shared = _reference_mean(anatomy, batches, behind_folded=behind_folded)
        everywhere = shared.expand(anatomy.graph.sources, -1)
        everything = _nothing(anatomy, everywhere, biased=behind_folded)
        return Replacement(lambda _length: everything)
    if ablation == "mean":
        mean = _mean(anatomy, batches)
        return Replacement(lambda _length: mean)
    means = _positional_mean(anatomy, batches)
    return Replacement(lambda length: _each(means, lambda t: t[:, :length]))


def _nothing(anatomy: Anatomy, offsets: Tensor | None, *, biased: bool = False) -> Written:
    """Zero everywhere; `biased`, heads keep what the biases of their values bring."""
    graph = anatomy.graph
    zero = torch.zeros((), dtype=anatomy.dtype, device=anatomy.device)
    heads = [zero.expand(graph.heads * anatomy.head_width)] * graph.layers
    for layer in range(graph.layers if biased else 0):
        if (biases := anatomy.value_biases(layer)) is not None:
            heads[layer] = biases.flatten().to(anatomy.dtype)
    return Written(
        embedding=zero.expand(graph.width),
        heads=tuple(heads),
        mlps=(zero.expand(graph.width),) * graph.layers,
        offsets=offsets,
    )


def _each(some: Written, change: Callable[[Tensor], Tensor]) -> Written:
    return Written(
        embedding=change(some.embedding),
        heads=tuple(map(change, some.heads)),
        mlps=tuple(map(change, some.mlps)),
    )


def _plus(a: Written, b: Written) -> Written:
    """The sum; the shorter one counts as zero behind its end."""

    def add(x: Tensor, y: Tensor) -> Tensor:
        long, short = (x, y) if x.shape[1] >= y.shape[1] else (y, x)
        found = long.clone()
        found[:, : short.shape[1]] += short
        return found

    return Written(
        embedding=add(a.embedding, b.embedding),
        heads=tuple(map(add, a.heads, b.heads)),
        mlps=tuple(map(add, a.mlps, b.mlps)),
    )


def _sums(anatomy: Anatomy, batches: Sequence[Batch]) -> tuple[Written, Tensor]:
    """Per position, the sum over prompts, and how many prompts have it."""
    found: list[Written] = []
    longest = max(batch.clean.shape[1] for batch in batches)
    counts = torch.zeros(longest, dtype=anatomy.dtype, device=anatomy.device)
    for batch in batches:
        one = run(anatomy, batch.clean)[1]
        found.append(_each(one, lambda t: t.to(anatomy.dtype).sum(0, keepdim=True)))
        counts[: batch.clean.shape[1]] += len(batch.rows)
    return reduce(_plus, found), counts


def _mean(anatomy: Anatomy, batches: Sequence[Batch]) -> Written:
    total, counts = _sums(anatomy, batches)
    return _each(total, lambda t: t.sum((0, 1)) / counts.sum())


def _positional_mean(anatomy: Anatomy, batches: Sequence[Batch]) -> Written:
    total, counts = _sums(anatomy, batches)
    return _each(total, lambda t: t / counts[None, :, None])


def _reference_mean(
    anatomy: Anatomy, batches: Sequence[Batch], *, behind_folded: bool
) -> Float[Tensor, " d"]:
    prompts = sum(len(batch.rows) for batch in batches)
    shared = torch.zeros(anatomy.graph.width, dtype=anatomy.dtype, device=anatomy.device)
    for batch in batches:
        found = run(anatomy, batch.clean)[1]
        last = _each(found, lambda t: t[:, -1:].to(anatomy.dtype)).flat()
        last = folded(anatomy, last) if behind_folded else last
        table = spread(anatomy, last, slice(None))
        shared += table.sum((0, 1)) / (batch.clean.shape[1] * anatomy.graph.sources * prompts)
    return shared


def mean_vectors(anatomy: Anatomy, batches: Sequence[Batch]) -> Float[Tensor, "sources d"]:
    """Each source's mean output over real tokens, at the stream's width."""
    mean = _each(_mean(anatomy, batches), lambda t: t[None])
    return spread(anatomy, mean, slice(None))[:, 0]
