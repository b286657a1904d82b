"""A `Patch`: what one row wants changed, as plain data.

Five verbs are enough for every method of the house. A patch is planned by a method, hashed, logged,
composed with `|` and sent over the wire; only `models.applying` makes a model feel it.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from models.errors import BadPatch
from models.site import Site

Positions = (
    Literal["all", "prompt", "generated", "last", "last_and_generated", "visual", "reference"]
    | tuple[int, ...]
)
"""Which tokens of a row; the tuple counts from 0, [BOS] included.

`last` is the last token of the prompt, `last_and_generated` that one and every one behind it."""

_FORMS_KEPT = 64
_Verb = TypeVar("_Verb", bound="Verb")


@dataclass(frozen=True, kw_only=True, eq=False)
class Verb:
    """Base of the five operations: its tensors are finite and float32, its content is its identity.

    Raises:
        BadPatch: At construction, for data that cannot be such an operation.
    """

    def __post_init__(self) -> None:
        for name, value in self._contents():
            if isinstance(value, Tensor):
                object.__setattr__(self, name, value.to(torch.float32))
                if not bool(torch.isfinite(value.detach()).all()):
                    raise BadPatch(f"{type(self).__name__}.{name} is not finite.")
            if name == "positions" and isinstance(value, tuple) and not _ascending(value):
                raise BadPatch(f"Positions count from 0 and ascend, not {value}.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the verb, its numbers and its tensors."""
        found = hashlib.sha256(type(self).__name__.encode())
        for name, value in self._contents():
            if isinstance(value, Tensor):
                dense = value.detach().cpu().contiguous()
                found.update(f"{name}{tuple(dense.shape)}".encode() + dense.numpy().tobytes())
            else:
                found.update(f"{name}={json.dumps(value)}".encode())
        return found.hexdigest()

    @cached_property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(v.nbytes for _, v in self._contents() if isinstance(v, Tensor))

    def _contents(self) -> list[tuple[str, object]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank(Verb):
    """Module output += (input . right^T) . left^T.

    Attributes:
        site: A linear layer.
        left: (out, r), the output side.
        right: (r, in), the input side.
    """

    site: str
    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if Site.parse(self.site).kind != "linear":
            raise BadPatch(f"LowRank needs a linear layer, {self.site} is a stream.")
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise BadPatch(f"left {_shape(self.left)} and right {_shape(self.right)} do not fit.")
        if not self.rank:
            raise BadPatch("A LowRank of rank 0 changes nothing: leave it out.")

    @property
    def rank(self) -> int:
        """Its inner width."""
        return self.right.shape[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift(Verb):
    """Stream += vector (d), at the positions."""

    site: str
    vector: Tensor
    positions: Positions = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        _need_stream(self.site, "Shift")
        if self.vector.ndim != 1:
            raise BadPatch(f"Shift needs one vector, not {_shape(self.vector)}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Clamp(Verb):
    """Moves one SAE feature: stream += (g(a) - a) * decoder, a = the feature's activation.

    a = z if z > threshold else 0, z = stream . encoder + encoder_bias. g is the constant `value`
    (`set`), max(a, value) (`min`) or a * value (`multiply`). Several clamps at a site all read the
    stream as it was before any of them.

    Attributes:
        encoder: (d), the feature's column of W_enc.
        decoder: (d), the feature's row of W_dec.
    """

    site: str
    encoder: Tensor
    encoder_bias: float
    decoder: Tensor
    value: float
    threshold: float = 0.0
    mode: Literal["set", "min", "multiply"] = "set"
    positions: Positions = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        _need_stream(self.site, "Clamp")
        if self.encoder.ndim != 1 or self.encoder.shape != self.decoder.shape:
            raise BadPatch("Clamp needs an encoder and a decoder vector of one length.")
        numbers = torch.tensor([self.encoder_bias, self.value, self.threshold])
        if not bool(torch.isfinite(numbers).all()):
            raise BadPatch("Clamp's bias, value and threshold must be finite.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Detour(Verb):
    """Rows of the stream after block `source` are written back after block `target`.

    For a window w (odd) the pairs (source + i -> target + i), |i| <= w // 2; pairs with an end
    outside the tower are dropped. Source values are the clean ones; with `loops` n > 1 they are
    those of a pass that was itself patched n - 1 times.
    """

    tower: str
    source: int
    target: int
    positions: Positions = "visual"
    window: int = 1
    loops: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.target < self.source:
            raise BadPatch(f"A detour leads back: not from {self.source} to {self.target}.")
        if self.window < 1 or self.window % 2 == 0:
            raise BadPatch(f"A window is odd, not {self.window}.")
        if self.loops < 1:
            raise BadPatch(f"A detour is made once or more often, not {self.loops} times.")

    def pairs(self, blocks: int) -> tuple[tuple[int, int], ...]:
        """(source, target) of every pair of the window inside a tower of so many blocks."""
        reach = self.window // 2
        both = ((self.source + i, self.target + i) for i in range(-reach, reach + 1))
        return tuple((s, t) for s, t in both if t >= 0 and s < blocks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Exit(Verb):
    """Blocks behind `after` pass the stream through; None leaves before block 0."""

    tower: str
    after: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.after is not None and self.after < 0:
            raise BadPatch(f"Blocks count from 0, not {self.after}.")


Operation = LowRank | Shift | Clamp | Detour | Exit


@dataclass(frozen=True, eq=False)
class Patch:
    """Everything that one row wants changed; the empty patch changes nothing.

    Operations are kept in digest order, so that `a | b` and `b | a` agree to the last bit.

    Raises:
        BadPatch: A row would leave a tower twice, two detours would write after one block, or
            detours of one tower would mean different tokens or loop differently often.
    """

    operations: tuple[Operation, ...] = ()

    def __post_init__(self) -> None:
        ordered = sorted(self.operations, key=lambda o: o.digest)
        object.__setattr__(self, "operations", tuple(_without_doubles(ordered)))
        exits = [o.tower for o in self.operations if isinstance(o, Exit)]
        ends = [(o.tower, o.target) for o in self.operations if isinstance(o, Detour)]
        if len(exits) > len(set(exits)):
            raise BadPatch("A row can leave a tower only once.")
        if len(ends) > len(set(ends)):
            raise BadPatch("Two detours of a row cannot end behind one block.")
        manners = {
            (o.tower, o.loops, o.positions) for o in self.operations if isinstance(o, Detour)
        }
        if len(manners) > len({tower for tower, _ in ends}):
            raise BadPatch("All detours of a row mean the same tokens and loop equally often.")

    def __or__(self, other: "Patch") -> "Patch":
        """Both changes; LowRanks, Shifts and Clamps of one place add up."""
        return Patch((*self.operations, *other.operations))

    def __bool__(self) -> bool:
        return bool(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patch) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content; the same for the same operations in any order."""
        return hashlib.sha256("\n".join(o.digest for o in self).encode()).hexdigest()

    @property
    def sites(self) -> frozenset[str]:
        """The linear layers and streams that are named."""
        return frozenset(o.site for o in self if isinstance(o, LowRank | Shift | Clamp))

    @property
    def rank(self) -> int:
        """The sum of the ranks of all LowRank operations."""
        return sum(o.rank for o in self if isinstance(o, LowRank))

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(o.nbytes for o in self)

    def without(self, *verbs: type[Verb]) -> "Patch":
        """The same without the operations of these verbs."""
        return Patch(tuple(o for o in self if not isinstance(o, verbs)))

    def placed(self, named: Mapping[str, tuple[int, ...]]) -> "Patch":
        """The same with these names of positions (`visual`, `reference`) replaced by columns.

        Raises:
            BadPatch: A name that only pictures give is meant, and the prompt shows none.
        """
        places: list[Positions | None] = []
        for operation in self:
            positions: Positions = getattr(operation, "positions", "all")
            if positions in ("visual", "reference"):
                positions = named.get(str(positions), ())
                if not positions:
                    raise BadPatch("Visual tokens are meant, but the prompt shows no picture.")
            places.append(positions)
        return self._placed(places)

    def within(self, start: int, tokens: int, prompt_tokens: int) -> "Patch":
        """What of it happens in a forward over positions start to start + tokens - 1 of a row.

        Named positions and tuples, which count from the row's first token, come out as "all", as a
        tuple that counts from `start`, or the operation is left out. `visual` and `reference`
        tokens stand in the prompt, and only the caller knows where: they keep their names there.
        Behind the prompt and all tuples it is the same object at every position, so that plans made
        from it can be kept.
        """
        if start >= prompt_tokens and start > self._furthest:
            return self._behind_all
        return self._narrowed(start, tokens, prompt_tokens)

    @cached_property
    def _furthest(self) -> int:
        """The last token that a tuple names; -1 without tuples."""
        places = (getattr(o, "positions", None) for o in self)
        return max((p[-1] for p in places if isinstance(p, tuple)), default=-1)

    @cached_property
    def _behind_all(self) -> "Patch":
        return self._narrowed(self._furthest + 1, 1, 0)

    @cached_property
    def _forms(self) -> "dict[tuple[Positions | None, ...], Patch]":
        """By what became of each operation's positions: most pieces of a prompt are alike."""
        return {}

    def _narrowed(self, start: int, tokens: int, prompt_tokens: int) -> "Patch":
        forward = range(start, start + tokens)
        places: tuple[Positions | None, ...] = tuple(
            _narrowed(o, forward, prompt_tokens) for o in self
        )
        known = self._forms.get(places)
        if known is None:
            if len(self._forms) >= _FORMS_KEPT:
                self._forms.clear()
            known = self._forms[places] = self._placed(places)
        return known

    def _placed(self, places: "Sequence[Positions | None]") -> "Patch":
        found = [_placed(o, at) for o, at in zip(self, places, strict=True)]
        if all(new is old for new, old in zip(found, self, strict=True)):
            return self
        return Patch(tuple(o for o in found if o is not None))


def _without_doubles(ordered: list[Operation]) -> Iterator[Operation]:
    """Leaving or detouring twice in the same way is the same as once; adding twice is not."""
    seen: set[str] = set()
    for operation in ordered:
        if operation.digest not in seen or not isinstance(operation, Exit | Detour):
            yield operation
        seen.add(operation.digest)


def _narrowed(operation: Operation, forward: range, prompt_tokens: int) -> Positions | None:
    """Its positions as a forward over these tokens carries them; None if none is its own."""
    if isinstance(operation, LowRank | Exit) or operation.positions == "all":
        return "all"
    if operation.positions in ("visual", "reference"):
        return operation.positions if forward.start < prompt_tokens else None
    here = _inside(operation.positions, forward, prompt_tokens)
    if not here:
        return None
    return "all" if len(here) == len(forward) else tuple(p - forward.start for p in here)


def _placed(operation: Operation, positions: Positions | None) -> Operation | None:
    """The operation at these positions; the same one if they are its own."""
    if isinstance(operation, LowRank | Exit) or positions == operation.positions:
        return operation
    return None if positions is None else _moved(operation, positions)


def _moved(operation: _Verb, positions: Positions) -> _Verb:
    """The same at other positions, which are known to be such: nothing is looked at again."""
    moved = object.__new__(type(operation))
    moved.__dict__.update({f.name: getattr(operation, f.name) for f in fields(operation)})
    moved.__dict__["positions"] = positions
    return moved


def _inside(positions: Positions, forward: range, prompt_tokens: int) -> Sequence[int]:
    """Which tokens of a forward are meant, counted from the row's first."""
    last = prompt_tokens - 1
    match positions:
        case "prompt":
            meant = range(prompt_tokens)
        case "generated":
            meant = range(prompt_tokens, forward.stop)
        case "last":
            meant = range(last, prompt_tokens)
        case "last_and_generated":
            meant = range(last, forward.stop)
        case tuple():
            first = bisect_left(positions, forward.start)
            return positions[first : bisect_left(positions, forward.stop, first)]
        case _:
            meant = forward
    return range(max(meant.start, forward.start), min(meant.stop, forward.stop))


def _ascending(positions: tuple[object, ...]) -> bool:
    numbers = [p for p in positions if isinstance(p, int)]
    return bool(numbers) and numbers == sorted(set(numbers)) and numbers[0] >= 0


def _need_stream(site: str, verb: str) -> None:
    if Site.parse(site).kind != "stream":
        raise BadPatch(f"{verb} needs a stream, {site} is a linear layer.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
