"""Keys and values of prompts that were read before, kept by content.

The key of a block of tokens holds all that its keys and values depend on: every token up to its
end and the pictures that begin before it, the weights' fingerprint, the dtype, the attention
implementation, and the patch *as it acts on these tokens*. So a steered prefix is never served to a
plain row, and a row that is steered only behind the prompt shares the plain one; and a conversation
that gains a picture finds what it showed before. Names of edits are not in it: names move. The
row's realm is: how long a first token takes tells what was read before, so strangers share nothing.
What is known never ends inside a picture, and a block ends where a picture does: another question
about it finds all of it.

A block that was read in another piece of a prompt differs in the last bits, as any batch does.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from engines.slots.row import Row
from engines.store import Kept
from models.hosted import HostedModel
from models.language import Language
from models.patch import Detour, Exit, Operation, Patch
from models.plan import detour_place
from models.slot_cache import Prefix, SlotCache


@dataclass(frozen=True)
class Block:
    """Some tokens' keys and values in every layer, and how many of them the patch changed."""

    prefix: Prefix
    changed: Mapping[str, int]


@dataclass(frozen=True)
class Known:
    """What is known of a prompt, and the key of the first block that is not."""

    blocks: list[Block]
    missing: str | None

    @property
    def tokens(self) -> int:
        """How many."""
        return sum(block.prefix.tokens for block in self.blocks)


@dataclass
class _Walk:
    """The keys of a row's first blocks so far, the hash of all that they say, where they end."""

    said: Any
    keys: list[str] = field(default_factory=list)
    end: int = 0


class Prefixes:
    """Blocks of prompts, least recently used first out; owner thread only.

    Args:
        hosted: The model.
        family: Its family.
        capacity: Bytes that are kept; 0 for none.
        block: Tokens of a block: only whole blocks are kept, and what of one a picture ends.
    """

    def __init__(
        self, hosted: HostedModel, family: Language, capacity: int, block: int = 16
    ) -> None:
        self.hosted, self.block = hosted, block
        self.kept: Kept[Block] = Kept(capacity)
        self.asked_tokens = self.hit_tokens = 0
        said = (hosted.fingerprint, str(hosted.dtype), family.default_attention, str(block))
        self._base = "\n".join(said).encode()
        self._walks: WeakKeyDictionary[Row, _Walk] = WeakKeyDictionary()

    def find(self, row: Row) -> Known:
        """What is known of the row's prompt; at least one token is left to be read."""
        found: list[Block] = []
        if self.kept.capacity:
            for key in self.keys(row, len(self._ends(row, row.prompt - 1))):
                block = self.kept.get(key)
                if block is None:
                    return Known(self._whole(row, found), key)
                found.append(block)
        return Known(self._whole(row, found), None)

    def _whole(self, row: Row, found: list[Block]) -> list[Block]:
        """As many of them as end where nothing is cut that must be whole."""
        while found and row.cuts(sum(block.prefix.tokens for block in found)):
            found.pop()
        return found

    def load(self, row: Row, known: Known, cache: SlotCache, slot: int) -> None:
        """Fill the row's slot with it."""
        self.asked_tokens += row.prompt
        if known.blocks:
            cache.load_prefix(slot, _joined([block.prefix for block in known.blocks]))
            row.done = row.cached = known.tokens
            row.changed = sum((Counter(block.changed) for block in known.blocks), Counter())
            self.hit_tokens += row.cached

    def store(self, row: Row, cache: SlotCache, slot: int) -> None:
        """Keep the whole blocks of what the row has run."""
        if not self.kept.capacity:
            return
        ends = self._ends(row, row.done)
        for key, first, end in zip(self.keys(row, len(ends)), (0, *ends), ends, strict=False):
            if key not in self.kept:
                tokens = end - first
                changed = self._changes(row.within(first, tokens), tokens)
                block = Block(_copied(cache, slot, first, tokens), changed)
                self.kept.put(key, block, block.prefix.nbytes)

    def _ends(self, row: Row, stop: int) -> list[int]:
        """Where the row's blocks end up to that column: those before it are the same for all."""
        ends = [self._end(row, 0)]
        while ends[-1] <= stop:
            ends.append(self._end(row, ends[-1]))
        return ends[:-1]

    def _end(self, row: Row, first: int) -> int:
        """Where a block that begins there ends: after its tokens, or where a picture does."""
        whole = (first // self.block + 1) * self.block
        return min((end for _, end in row.uncut if first < end < whole), default=whole)

    def keys(self, row: Row, blocks: int) -> Sequence[str]:
        """SHA-256 of all that each of the row's first blocks depends on.

        Every block is hashed once: what a row has said, and what its patch does there, stay.
        """
        walk = self._walks.get(row)
        if walk is None:
            realm = hashlib.sha256(row.request.realm.encode()).digest()
            walk = self._walks[row] = _Walk(hashlib.sha256(self._base + realm))
        while len(walk.keys) < blocks:
            first, end = walk.end, self._end(row, walk.end)
            stop = max(end, row.whole(end))  # it is read together with what stands up to there
            # A block's length stands before it, and the rest is as long for a plain block as for a
            # changed one: no two histories read alike.
            lengths = (end - first, stop - first)
            walk.said.update(array("q", (*lengths, *row.tokens[first:stop])).tobytes())
            walk.said.update(row.within(first, end - first).digest.encode())
            walk.said.update(_pictures(row, first, stop))
            walk.keys.append(walk.said.hexdigest())
            walk.end = end
        return walk.keys[:blocks]

    def _changes(self, patch: Patch, block: int) -> dict[str, int]:
        """What a forward over so many tokens counted: it would have failed otherwise."""
        found: dict[str, set[int]] = {}
        exits: Counter[str] = Counter()
        for operation in patch:
            if isinstance(operation, Exit):
                exits[f"{operation.tower}.exit"] = block * self._passed(operation)
                continue
            positions = getattr(operation, "positions", None)
            tokens = positions if isinstance(positions, tuple) else range(block)
            for place in self._places(operation):
                found.setdefault(place, set()).update(tokens)
        return {place: len(tokens) for place, tokens in found.items()} | exits

    def _passed(self, leaving: Exit) -> int:
        """Layers that pass the stream through."""
        after = -1 if leaving.after is None else leaving.after
        return len(self.hosted.towers[leaving.tower]) - 1 - after

    def _places(self, operation: Operation) -> Iterator[str]:
        if isinstance(operation, Detour):
            blocks = len(self.hosted.towers[operation.tower])
            for _, target in operation.pairs(blocks):
                yield detour_place(operation.tower, target)
        elif not isinstance(operation, Exit):
            yield operation.site


def _pictures(row: Row, first: int, stop: int) -> bytes:
    """What the row begins to show between these columns; as long in every case."""
    said = "" if row.shown is None else row.shown.sight.told(first, stop)
    return hashlib.sha256(said.encode()).digest()


def _joined(prefixes: list[Prefix]) -> Prefix:
    keys = zip(*(prefix.keys for prefix in prefixes), strict=True)
    values = zip(*(prefix.values for prefix in prefixes), strict=True)
    return Prefix(tuple(map(_cat, keys)), tuple(map(_cat, values)))


def _cat(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts, dim=1)


def _copied(cache: SlotCache, slot: int, first: int, tokens: int) -> Prefix:
    """In memory of its own: a view would keep every slot alive."""

    def cut(held: Tensor) -> Tensor:
        return held[slot, :, first : first + tokens].clone()

    layers = cache.slot_layers
    return Prefix(tuple(cut(of.keys) for of in layers), tuple(cut(of.values) for of in layers))
