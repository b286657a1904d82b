"""Interchange interventions: units of the base take what their features hold in a counterfactual.

A run begins at the first layer that a swap reaches and at the first token of each row that it
reaches; all that stands before is clean and comes from `Clean`. Hooks are installed for one run and
taken out again whatever happens; every one of them must fire, and as often as planned.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evaluation.variables.clean import Clean, at
from evaluation.variables.units import head_width, language, output_projection
from models.errors import PatchNotApplied
from models.hosted import HostedModel
from models.slot_cache import Prefix, PrefixCache

Change = Callable[[Tensor, Tensor], Tensor]
"""From what a unit holds in the base and in the counterfactual, (rows, k, width) each, to what it
shall hold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Swap:
    """One unit of some rows.

    Attributes:
        layer: The block that the stream leaves, or that has the head.
        columns: Tokens of each row, counted from its beginning; -1 where a row has fewer.
        source: What the unit holds in the counterfactual.
        change: What becomes of both.
        rows: Which rows of the run.
    """

    layer: int
    head: int | None
    columns: Int[Tensor, "rows k"]
    source: Float[Tensor, "rows k width"]
    change: Change
    rows: slice

    @property
    def first(self) -> int:
        """The first layer that computes anything else."""
        return self.layer + (self.head is None)


def first_layer(swaps: Sequence[Swap]) -> int:
    """Where a run with these swaps begins: of what must be read before."""
    return min(swap.first for swap in swaps)


def run(
    hosted: HostedModel, clean: Clean, swaps: Sequence[Swap], wanted: Int[Tensor, "rows m"]
) -> Float[Tensor, "rows m vocab"]:
    """Logits under the swaps, in float32, soft-cap included.

    Gradients flow through the layers into what `change` learns; the weights have none.

    Args:
        hosted: A model of the evaluation's own.
        clean: Of the rows; it keeps what enters `first_layer(swaps)`.
        swaps: Rows without one are simply continued.
        wanted: Tokens of each row whose logits are asked for; none stands before its swaps.

    Raises:
        PatchNotApplied: A swap was not made, or not as often as planned.
    """
    family, first = language(hosted), first_layer(swaps)
    starts = _starts(swaps, wanted)
    tail = _Tail.of(clean, starts)
    stream = at(clean.entering[first], tail.columns)
    with _swapping(hosted, swaps, starts) as ending:
        stream = family.run_layers(
            hosted,
            stream,
            first,
            tail if tail.begins_later else None,
            tail.positions,
        )
        stream = ending(stream)
    ends = at(stream, wanted - starts[:, None])
    return family.soft_cap(hosted, family.unembed(hosted, ends))


def _starts(swaps: Sequence[Swap], wanted: Int[Tensor, "rows m"]) -> Int[Tensor, " rows"]:
    """The first token of each row that is computed anew."""
    starts = wanted.amin(1)
    for swap in swaps:
        columns = swap.columns
        behind = columns.masked_fill(columns < 0, int(wanted.max())).amin(1)
        starts[swap.rows] = torch.minimum(starts[swap.rows], behind)
    return starts


class _Tail(PrefixCache):
    """Clean keys and values of the tokens before each row's start; new ones take their places."""

    def __init__(self, clean: Clean, starts: Int[Tensor, " rows"], tokens: int) -> None:
        super().__init__(Prefix((), ()))
        self.clean, self.begins = clean, starts.tolist()
        steps = torch.arange(tokens, device=starts.device)
        self.positions = starts[:, None] + steps
        self.columns = self.positions.clamp_max(clean.rows.ids.shape[1] - 1)
        self.longest = max(self.begins) + tokens

    @classmethod
    def of(cls, clean: Clean, starts: Int[Tensor, " rows"]) -> "_Tail":
        """As many tokens as the row with the longest tail has."""
        return cls(clean, starts, int((clean.rows.lengths - starts).max()))

    @property
    def begins_later(self) -> bool:
        """Whether there is anything clean before some row's start."""
        return any(self.begins)

    def starts(self, rows: int) -> tuple[int, ...]:
        if rows != len(self.begins):
            raise ValueError(f"{rows} rows are not the {len(self.begins)} of this run.")
        return tuple(self.begins)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        return (
            self._put(self.clean.keys[layer_idx], key_states),
            self._put(self.clean.values[layer_idx], value_states),
        )

    def _put(
        self,
        kept: Float[Tensor, "rows heads tokens dim"],
        new: Float[Tensor, "rows heads tail dim"],
    ) -> Float[Tensor, "rows heads keys dim"]:
        more = self.longest - kept.shape[2]
        kept = nn.functional.pad(kept, (0, 0, 0, more)) if more > 0 else kept[:, :, : self.longest]
        index = self.positions[:, None, :, None].expand_as(new)
        return kept.scatter(2, index, new)


@contextmanager
def _swapping(
    hosted: HostedModel, swaps: Sequence[Swap], starts: Int[Tensor, " rows"]
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Forwards inside are swapped; what is given is for the stream that leaves the last layer."""
    layers, fired = language(hosted).decoder(hosted).layers, [0] * len(swaps)

    def changed(number: int, whole: Tensor) -> Tensor:
        fired[number] += 1
        return _written(hosted, whole, swaps[number], starts[swaps[number].rows])

    with ExitStack() as undo:
        at_end: list[int] = []
        for number, swap in enumerate(swaps):
            if swap.head is None and swap.layer + 1 == len(layers):
                at_end.append(number)
                continue
            module = layers[swap.layer + 1] if swap.head is None else None
            place = output_projection(hosted, swap.layer) if module is None else module
            undo.callback(place.register_forward_pre_hook(_hook(number, changed)).remove)

        def ending(stream: Tensor) -> Tensor:
            for number in at_end:
                stream = changed(number, stream)
            return stream

        yield ending
    for swap, times in zip(swaps, fired, strict=True):
        if times != 1:
            raise PatchNotApplied(frozenset({0}), f"layer {swap.layer}", 1, times)


def _hook(number: int, changed: Callable[[int, Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (changed(number, args[0]), *args[1:])

    return hook


def _written(
    hosted: HostedModel,
    whole: Float[Tensor, "rows tail d"],
    swap: Swap,
    starts: Int[Tensor, " some"],
) -> Float[Tensor, "rows tail d"]:
    """The stream, or all heads' z, with the unit's tokens replaced."""
    own = slice(None)
    if swap.head is not None:
        wide = head_width(hosted, swap.layer)
        own = slice(swap.head * wide, (swap.head + 1) * wide)
    rows = whole[swap.rows]
    columns = torch.where(swap.columns < 0, swap.columns, swap.columns - starts[:, None])
    before = at(rows[..., own], columns)
    after = swap.change(before, swap.source).to(whole.dtype)
    # What a row does not have is written behind the last token, and cut off again.
    index = torch.where(columns < 0, rows.shape[1], columns)[..., None].expand_as(after)
    part = nn.functional.pad(rows[..., own], (0, 0, 0, 1)).scatter(1, index, after)[:, :-1]
    if swap.head is not None:
        part = torch.cat([rows[..., : own.start], part, rows[..., own.stop :]], dim=-1)
    if len(part) == len(whole):
        return part
    return torch.cat([whole[: swap.rows.start], part, whole[swap.rows.stop :]])
