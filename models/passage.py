"""One forward's way through the layers of a decoder, layer by layer."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from models.decoder import TOWER, Decoder
from models.detour import Detours, Way
from models.hosted import HostedModel
from models.sight import Shown, Span
from models.slot_cache import AheadCache, PrefixCache, SlotCache

if TYPE_CHECKING:
    from models.language import Language


@dataclass(frozen=True, kw_only=True, eq=False)
class Passage(Way):
    """What every layer of one forward is called with.

    Attributes:
        hosted, family, decoder: The model.
        positions: Of the tokens.
        starts: The first of each row.
        cache: What the tokens see before themselves.
        shown: Per row its pictures; empty where no row has any.
        masks: Per layer type what is added to attention scores.
        turns: Per layer type the rotations (*axes, rows, tokens, d), a tuple of them as the
            library makes it; None where positions are learned.
    """

    hosted: HostedModel
    family: "Language"
    decoder: Decoder
    positions: Int[Tensor, "rows tokens"]
    starts: Sequence[int]
    cache: SlotCache | AheadCache | PrefixCache | None
    shown: Sequence[Shown | None]
    masks: Mapping[str, Tensor | None]
    turns: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        """New tokens of each row."""
        return self.positions.shape[1]

    def layer(
        self, index: int, stream: Float[Tensor, "rows tokens d"]
    ) -> Float[Tensor, "rows tokens d"]:
        """One layer, and what the model adds behind it."""
        kind = self.decoder.layer_types[index]
        turns = self.turns[kind]
        stream = self.decoder.layers[index](
            stream,
            attention_mask=self.masks[kind],
            position_ids=self.positions,
            past_key_values=self.cache,
            **({} if turns is None else {"position_embeddings": turns}),
        )
        return self.family.behind(index, stream, self)

    # --- for detours ------------------------------------------------------------------------------

    def detours(self) -> Detours | None:
        """Those of the plan in force, which are made here and not by the hooks; None without."""
        run = self.hosted.run
        if run is None or run.scratch or TOWER not in run.plan.detours:
            return None
        run.led = True
        return Detours(run.plan.detours[TOWER], self, run.count)

    def ahead(self, rows: Sequence[int], stop: int) -> "Passage":
        """Some of its rows, cut behind a column; they see their slots, and nothing is kept.

        Masks and rotations are cut out of its own: a token's are the same in a shorter forward.
        """
        those, starts = _index(rows), [self.starts[row] for row in rows]
        keys = max(starts) + stop
        return replace(
            self,
            positions=self.positions[those, :stop],
            starts=starts,
            cache=AheadCache(self.cache, rows) if isinstance(self.cache, SlotCache) else self.cache,
            shown=[self.shown[row] for row in rows] if self.shown else (),
            masks={
                kind: None if mask is None else mask[those, :, :stop, :keys]
                for kind, mask in self.masks.items()
            },
            turns={kind: _cut(turn, those, stop) for kind, turn in self.turns.items()},
        )

    def joint(self, row: int) -> Sequence[Span]:
        """Columns of the row whose tokens see each other in both directions."""
        shown, start = self.shown[row] if self.shown else None, self.starts[row]
        if shown is None:
            return ()
        return [(first - start, end - start) for first, end in shown.sight.joint if end > start]

    def quiet(self, rows: Sequence[int]) -> AbstractContextManager[None]:
        """In this block the rows' other changes happen to them, uncounted."""
        return self.hosted.ahead(rows)


def _index(rows: Sequence[int]) -> slice | list[int]:
    """The same rows, as a slice where they stand side by side: nothing is copied then."""
    beside = range(rows[0], rows[0] + len(rows))
    return slice(beside.start, beside.stop) if list(rows) == list(beside) else list(rows)


def _cut(turns: Any, rows: slice | list[int], stop: int) -> Any:
    """The rotations of some rows' first tokens."""
    if turns is None:
        return None
    return tuple(turn[..., rows, :stop, :] for turn in turns)
