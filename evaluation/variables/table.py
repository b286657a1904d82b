"""The interchanges of one variable as tensors, and what is asked of them.

Answers are teacher forced: a row is the base with the expected answer behind it, its last token
left out. Counterfactual sets are pooled; each row knows its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from evaluation.behaviours.pairs import Dropped
from evaluation.behaviours.swaps import SwapIds
from evaluation.variables.clean import Rows
from evaluation.variables.errors import NothingKept
from evaluation.variables.units import ALL

NO_LABEL = -100
"""Where a row's answer has fewer tokens than the longest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Interchanges of one variable.

    Attributes:
        swaps: In the order of all tensors.
        rows: Bases, with all but the last token of their answers behind them.
        others: Counterfactuals.
        columns: By position the tokens of the base and those of the counterfactual, (rows, k)
            each; -1 where a row has fewer.
        wanted: Tokens behind which the answer's tokens follow.
        labels: The expected answer's tokens; `NO_LABEL` behind its end.
    """

    variable: str
    swaps: tuple[SwapIds, ...]
    rows: Rows
    others: Rows
    columns: Mapping[str, tuple[Int[Tensor, "rows k"], Int[Tensor, "rows k"]]]
    wanted: Int[Tensor, "rows m"]
    labels: Int[Tensor, "rows m"]

    def __len__(self) -> int:
        return len(self.swaps)

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets of counterfactuals."""
        return tuple(sorted({swap.of_set for swap in self.swaps}))


def table(
    swaps: Sequence[SwapIds],
    variable: str,
    positions: Iterable[str],
    *,
    new_tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> Table:
    """The table of some interchanges; they have the variable and the positions (see `usable`).

    Args:
        swaps: At least one.
        variable: Which is swapped.
        positions: That are swapped at.
        new_tokens: Where longer answers are cut; None keeps them.
        device: Of the model.
    """
    answers = [swap.expected[variable][:new_tokens] for swap in swaps]
    bases = [(*swap.base, *answer[:-1]) for swap, answer in zip(swaps, answers, strict=True)]
    longest = max(map(len, answers))
    behind = [len(swap.base) - 1 for swap in swaps]
    wanted = [
        [first + min(i, len(answer) - 1) for i in range(longest)]
        for first, answer in zip(behind, answers, strict=True)
    ]
    labels = [[*answer, *[NO_LABEL] * (longest - len(answer))] for answer in answers]
    return Table(
        variable=variable,
        swaps=tuple(swaps),
        rows=Rows.of(bases, device),
        others=Rows.of([swap.counterfactual for swap in swaps], device),
        columns={name: _columns(swaps, name, device) for name in positions},
        wanted=torch.tensor(wanted, device=device),
        labels=torch.tensor(labels, device=device),
    )


def usable(
    swaps: Sequence[SwapIds], variable: str, positions: Iterable[str]
) -> tuple[tuple[SwapIds, ...], tuple[Dropped, ...]]:
    """Rows that have the variable and the positions; the others with their reasons.

    Raises:
        NothingKept: No row has them.
    """
    kept, dropped, wanted = [], [], tuple(positions)
    for row, swap in enumerate(swaps):
        if (reason := _unusable(swap, variable, wanted)) is None:
            kept.append(swap)
        else:
            dropped.append(Dropped(row=row, reason=reason))
    if not kept:
        raise NothingKept(dropped[0].reason if dropped else "there are no interchanges")
    return tuple(kept), tuple(dropped)


def _unusable(swap: SwapIds, variable: str, positions: Sequence[str]) -> str | None:
    if not swap.expected.get(variable):
        return f"nothing is expected when {variable} is swapped"
    for name in positions:
        if name == ALL and len(swap.base) != len(swap.counterfactual):
            lengths = f"{len(swap.base)} and {len(swap.counterfactual)} tokens"
            return f"all positions are swapped, and the prompts have {lengths}"
        if name != ALL and name not in swap.positions:
            return f"it has no position {name}"
    return None


def positions_of(swaps: Sequence[SwapIds]) -> tuple[str, ...]:
    """Positions that every row has, in the order of the first row."""
    shared = [set(swap.positions) for swap in swaps]
    return tuple(name for name in swaps[0].positions if all(name in some for some in shared))


def _columns(
    swaps: Sequence[SwapIds], name: str, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    if name == ALL:
        longest = max(len(swap.base) for swap in swaps)
        every = torch.arange(longest, device=device).expand(len(swaps), -1)
        lengths = torch.tensor([len(swap.base) for swap in swaps], device=device)
        columns = torch.where(every < lengths[:, None], every, -1)
        return columns, columns
    pairs = torch.tensor([swap.positions[name] for swap in swaps], device=device)
    return pairs[:, :1], pairs[:, 1:]
