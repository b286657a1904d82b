"""Keys and values of decoder rows: one slot a row, each row at its own position.

Dense, not paged: per layer (slots, heads, capacity, dim) for keys and for values. Sliding layers
keep the whole capacity as well and are masked, so a slot can be copied, moved and shared freely.
What stands behind a row's own end is masked, never erased: it must stay finite, which is why a row
that ends in NaN leaves with `clear`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class Window:
    """Where the rows of one forward stand.

    Attributes:
        slots: Of each row.
        starts: The absolute position of each row's first new token.
        tokens: New tokens of each row.
        longest: Keys that the forward can see: up to the end of the longest row.
        first: The first slot if the rows lie side by side in order; None otherwise.
        index: The slots as a tensor.
        places: Per number of heads, where new keys go in a layer laid out flat.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    tokens: int
    longest: int
    first: int | None
    index: Int[Tensor, " rows"]
    places: dict[int, Int[Tensor, " places"]]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the first tokens of one row, layer by layer (heads, tokens, dim)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        """How many tokens it holds."""
        return self.keys[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in (*self.keys, *self.values))

    def first(self, tokens: int) -> "Prefix":
        """Its beginning, as a view."""
        return Prefix(
            tuple(k[:, :tokens] for k in self.keys), tuple(v[:, :tokens] for v in self.values)
        )


class SlotLayer(CacheLayerMixin):
    """One layer's slots."""

    keys: Any
    values: Any

    def __init__(self, keys: Float[Tensor, "slots heads capacity dim"]) -> None:
        super().__init__()
        self.keys, self.values = keys, torch.zeros_like(keys)
        self.is_initialized = True
        self.window: Window | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the slots are there from the beginning."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens at their rows' own positions; all that the rows can see."""
        window = self._open()
        return self._put(self.keys, key_states, window), self._put(
            self.values, value_states, window
        )

    def _put(self, held: Tensor, new: Tensor, window: Window) -> Tensor:
        dim = held.shape[-1]
        if len(window.slots) == 1:
            start = window.starts[0]
            held[window.slots[0], :, start : start + window.tokens] = new[0]
        else:
            places = window.places[held.shape[1]]
            held.view(-1, dim).index_copy_(0, places, new.reshape(-1, dim))
        if window.first is None:
            return held[:, :, : window.longest].index_select(0, window.index)
        rows = held[window.first : window.first + len(window.slots)]
        return rows[:, :, : window.longest]

    def _open(self) -> Window:
        if self.window is None:
            raise RuntimeError("Nobody said where the rows stand: call `SlotCache.open` first.")
        return self.window

    def get_seq_length(self) -> int:
        """Tokens before the new ones, of the longest row."""
        return 0 if self.window is None else self.window.longest - self.window.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys, offset) of the mask."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Positions of a slot."""
        return self.keys.shape[2]


class SlotCache(Cache):
    """All layers' slots.

    Args:
        shapes: (heads, dim) of each layer's keys and values.
        slots: Rows that can be held.
        capacity: Positions of each.
        dtype: Of keys and values.
        device: Where they live.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        slots: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        # Made under inference mode they could not be written outside it.
        with torch.inference_mode(False):
            self.slot_layers = [
                SlotLayer(torch.zeros(slots, heads, capacity, dim, dtype=dtype, device=device))
                for heads, dim in shapes
            ]
            self._steps = torch.arange(capacity, device=device)
        super().__init__(layers=list(self.slot_layers))
        self.slots, self.capacity, self.device = slots, capacity, torch.device(device)

    def open(self, slots: Sequence[int], starts: Sequence[int], tokens: int) -> Window:
        """Say where the rows of the next forward stand.

        Raises:
            ValueError: Of a slot that is not there or named twice, or a row that would not fit.
        """
        self._check(slots, starts, tokens)
        index = torch.tensor(slots, device=self.device)
        first = slots[0] if list(slots) == list(range(slots[0], slots[0] + len(slots))) else None
        window = Window(
            slots=tuple(slots),
            starts=tuple(starts),
            tokens=tokens,
            longest=max(starts) + tokens,
            first=first,
            index=index,
            places=self._places(index, starts, tokens),
        )
        for layer in self.slot_layers:
            layer.window = window
        return window

    def _check(self, slots: Sequence[int], starts: Sequence[int], tokens: int) -> None:
        if not slots or len(slots) != len(starts) or len(set(slots)) != len(slots):
            raise ValueError("Each row needs a slot of its own and a start.")
        if min(slots) < 0 or max(slots) >= self.slots:
            raise ValueError(f"There are {self.slots} slots, not {max(slots) + 1}.")
        if tokens < 1 or min(starts) < 0 or max(starts) + tokens > self.capacity:
            raise ValueError(f"{max(starts)} and {tokens} tokens do not fit {self.capacity}.")

    def _places(
        self, index: Int[Tensor, " rows"], starts: Sequence[int], tokens: int
    ) -> dict[int, Int[Tensor, " places"]]:
        if len(starts) == 1:
            return {}
        at = torch.tensor(starts, device=self.device)[:, None, None] + self._steps[:tokens]
        found = {}
        for heads in {layer.keys.shape[1] for layer in self.slot_layers}:
            lines = index[:, None, None] * heads + self._steps.new_tensor(range(heads))[:, None]
            found[heads] = (lines * self.capacity + at).flatten()
        return found

    def starts(self, rows: int) -> tuple[int, ...]:
        """The absolute position of each row's first new token.

        Raises:
            ValueError: The rows are not those that `open` was told of.
        """
        window = self.slot_layers[0].window
        if window is None or len(window.slots) != rows:
            raise ValueError("Say with `open` where the rows stand.")
        return window.starts

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """What a layer's attention calls: write its new keys and values, read what it can see."""
        return self.slot_layers[layer_idx].update(key_states, value_states)

    def move(self, source: int, target: int, tokens: int | None = None) -> None:
        """Copy a slot's first tokens, or all of it, into another."""
        for layer in self.slot_layers:
            layer.keys[target, :, :tokens] = layer.keys[source, :, :tokens]
            layer.values[target, :, :tokens] = layer.values[source, :, :tokens]

    def copy_prefix(self, slot: int, tokens: int) -> Prefix:
        """A copy of a slot's first tokens, to keep."""
        return Prefix(
            tuple(layer.keys[slot, :, :tokens].clone() for layer in self.slot_layers),
            tuple(layer.values[slot, :, :tokens].clone() for layer in self.slot_layers),
        )

    def load_prefix(self, slot: int, prefix: Prefix) -> None:
        """Write a kept prefix to the beginning of a slot; ValueError if it does not fit."""
        if prefix.tokens > self.capacity:
            raise ValueError(f"{prefix.tokens} tokens do not fit {self.capacity}.")
        for layer, keys, values in zip(self.slot_layers, prefix.keys, prefix.values, strict=True):
            layer.keys[slot, :, : prefix.tokens] = keys
            layer.values[slot, :, : prefix.tokens] = values

    def clear(self, slot: int) -> None:
        """Erase a slot: a row that ended in NaN would spoil the next one behind its own end."""
        for layer in self.slot_layers:
            layer.keys[slot] = 0
            layer.values[slot] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.slot_layers)


class AheadCache(Cache):
    """Rows that look at what their slots hold before them; nothing of what they add is kept.

    Args:
        cache: Opened for a forward.
        rows: Some of that forward's rows.
    """

    def __init__(self, cache: SlotCache, rows: Sequence[int]) -> None:
        super().__init__(layers=[])
        window = cache.slot_layers[0].window
        if window is None:
            raise ValueError("Say with `open` where the rows stand.")
        self.cache = cache
        self._starts = tuple(window.starts[row] for row in rows)
        self._index = torch.tensor([window.slots[row] for row in rows], device=cache.device)

    def starts(self, rows: int) -> tuple[int, ...]:
        """The absolute position of each row's first new token; ValueError for other rows."""
        if rows != len(self._starts):
            raise ValueError("These are not the rows that run ahead.")
        return self._starts

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """What the slots hold, and behind it what is new."""
        layer = self.cache.slot_layers[layer_idx]
        return self._seen(layer.keys, key_states), self._seen(layer.values, value_states)

    def _seen(self, held: Tensor, new: Tensor) -> Tensor:
        longest = max(self._starts)
        if longest == 0:
            return new
        before = held.index_select(0, self._index)[:, :, :longest]
        if min(self._starts) == longest:
            return torch.cat([before, new], dim=2)
        seen = torch.cat([before, torch.zeros_like(new)], dim=2)
        for row, start in enumerate(self._starts):
            seen[row, :, start : start + new.shape[2]] = new[row]
        return seen


class PrefixCache(Cache):
    """One prefix that many rows continue; nothing of what they add is kept."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__(layers=[])
        self.prefix = prefix

    def starts(self, rows: int) -> tuple[int, ...]:
        """Every row begins behind the prefix."""
        return (self.prefix.tokens,) * rows

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """The prefix, seen by every row, and what is new."""
        held = (self.prefix.keys[layer_idx], self.prefix.values[layer_idx])
        return (
            torch.cat([held[0].expand(len(key_states), -1, -1, -1), key_states], dim=2),
            torch.cat([held[1].expand(len(value_states), -1, -1, -1), value_states], dim=2),
        )
