"""Clean forwards, read once: what enters layers, keys and values, what units hold.

A swap at a layer and a token leaves everything below the layer and before the token as it was.
That part is read here, so that a training step runs only the rest. Rows of different lengths stand
side by side, filled up behind their end, where a causal model never looks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.variables.units import Unit, head_width, language, output_site
from models.decoder import TOWER
from models.hosted import HostedModel
from models.site import block, embedding
from models.slot_cache import Prefix, PrefixCache


@dataclass(frozen=True, eq=False)
class Rows:
    """Token ids side by side.

    Attributes:
        ids: Filled up with 0 behind each row's end.
        lengths: Of each row.
    """

    ids: Int[Tensor, "rows tokens"]
    lengths: Int[Tensor, " rows"]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> "Rows":
        """Rows of a model's device; there is at least one, and none is empty."""
        longest = max(map(len, sequences))
        filled = [[*row, *[0] * (longest - len(row))] for row in sequences]
        lengths = [len(row) for row in sequences]
        return cls(torch.tensor(filled, device=device), torch.tensor(lengths, device=device))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice) -> "Rows":
        lengths = self.lengths[index]
        return Rows(self.ids[index, : int(lengths.max())], lengths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Clean:
    """A clean forward of some rows.

    Attributes:
        entering: By layer what enters it, (rows, tokens, d); the number of layers is what leaves
            the last one.
        keys, values: By layer (rows, heads, tokens, dim), from the lowest of `entering` on.
    """

    rows: Rows
    entering: Mapping[int, Tensor]
    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        kept = (*self.entering.values(), *self.keys.values(), *self.values.values())
        return sum(t.nbytes for t in kept)

    def __getitem__(self, index: Tensor) -> "Clean":
        """Some of the rows, in the order of the index; one may come twice."""
        rows = self.rows[index]
        tokens = rows.ids.shape[1]
        return Clean(
            rows=rows,
            entering={i: t[index, :tokens] for i, t in self.entering.items()},
            keys={i: t[index, :, :tokens] for i, t in self.keys.items()},
            values={i: t[index, :, :tokens] for i, t in self.values.items()},
        )


class _Recorder(PrefixCache):
    """Keeps the keys and values that pass, and adds none."""

    def __init__(self, first: int) -> None:
        super().__init__(Prefix((), ()))
        self.first = first
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def starts(self, rows: int) -> tuple[int, ...]:
        return (0,) * rows

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        if layer_idx >= self.first:
            self.keys[layer_idx], self.values[layer_idx] = key_states, value_states
        return key_states, value_states


@torch.no_grad()
def read(hosted: HostedModel, rows: Rows, layers: Iterable[int]) -> Clean:
    """One clean forward.

    Args:
        hosted: A model that continues texts.
        rows: On its device.
        layers: Of which what enters is kept.
    """
    family, wanted = language(hosted), sorted(set(layers))
    recorder = _Recorder(wanted[0])
    with hosted.captured(*map(_entering, wanted)) as seen:
        stream = family.embed(hosted, rows.ids, _counted(rows))
        family.run_layers(hosted, stream, 0, recorder)
    return Clean(
        rows=rows,
        entering={layer: seen[_entering(layer)][0] for layer in wanted},
        keys=recorder.keys,
        values=recorder.values,
    )


@torch.no_grad()
def held(
    hosted: HostedModel, rows: Rows, units: Iterable[Unit], columns: Mapping[str, Tensor]
) -> dict[Unit, Float[Tensor, "rows k width"]]:
    """What all units hold, from one clean forward.

    Args:
        hosted: A model that continues texts.
        rows: On its device.
        units: Of any layer, streams and heads.
        columns: By position (rows, k) columns.
    """
    family, wanted = language(hosted), sorted(set(units), key=lambda u: u.name)
    sites = {unit: _site(hosted, unit) for unit in wanted}
    with hosted.captured(*dict.fromkeys(sites.values())) as seen:
        stream = family.embed(hosted, rows.ids, _counted(rows))
        family.run_layers(hosted, stream, 0)
    found = {}
    for unit in wanted:
        values = at(seen[sites[unit]][0], columns[unit.position])
        if unit.head is not None:
            own = head_width(hosted, unit.layer)
            values = values[..., unit.head * own : (unit.head + 1) * own]
        found[unit] = values.clone()
    return found


def at(
    stream: Float[Tensor, "rows tokens d"], columns: Int[Tensor, "rows k"]
) -> Float[Tensor, "rows k d"]:
    """The tokens of each row that its columns name; below 0 the first one, which nobody reads."""
    index = columns.clamp_min(0)[..., None].expand(-1, -1, stream.shape[-1])
    return stream.gather(1, index)


def _counted(rows: Rows) -> Int[Tensor, "rows tokens"]:
    tokens = torch.arange(rows.ids.shape[1], device=rows.ids.device)
    return tokens.expand(len(rows), -1)


def _entering(layer: int) -> str:
    return embedding(TOWER) if layer == 0 else block(TOWER, layer - 1)


def _site(hosted: HostedModel, unit: Unit) -> str:
    return unit.site if unit.head is None else output_site(hosted, unit.layer)
