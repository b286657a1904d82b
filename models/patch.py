"""A `Patch`: what one row wants changed, as plain data.

Five verbs are enough for every method of the house. A patch is planned by a method, hashed, logged,
composed with `|` and sent over the wire; only `models.applying` makes a model feel it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from models.errors import BadPatch
from models.site import Site

Positions = Literal["all", "prompt", "generated", "last", "visual", "reference"] | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
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
        if Site.parse(self.site).kind != "linear":
            raise BadPatch(f"LowRank needs a linear layer, {self.site} is a stream.")
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise BadPatch(f"left {_shape(self.left)} and right {_shape(self.right)} do not fit.")
        _finite(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """Stream += vector (d), at the positions."""

    site: str
    vector: Tensor
    positions: Positions = "all"

    def __post_init__(self) -> None:
        _stream(self.site, "Shift")
        if self.vector.ndim != 1:
            raise BadPatch(f"Shift needs one vector, not {_shape(self.vector)}.")
        _finite(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Clamp:
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
        _stream(self.site, "Clamp")
        if self.encoder.ndim != 1 or self.encoder.shape != self.decoder.shape:
            raise BadPatch("Clamp needs an encoder and a decoder vector of one length.")
        _finite(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detour:
    """Rows of the stream after block `source` are written back after block `target`.

    For a window w (odd) the pairs (source + i -> target + i), |i| <= w // 2; pairs with an end
    outside the tower are dropped. Source values are the clean ones.
    """

    tower: str
    source: int
    target: int
    positions: Positions = "visual"
    window: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.target < self.source:
            raise BadPatch(f"A detour leads back: 0 <= target {self.target} < source {self.source}.")
        if self.window < 1 or self.window % 2 == 0:
            raise BadPatch(f"A window is odd, not {self.window}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Exit:
    """Blocks behind `after` pass the stream through; None leaves before block 0."""

    tower: str
    after: int | None

    def __post_init__(self) -> None:
        if self.after is not None and self.after < 0:
            raise BadPatch(f"Blocks count from 0, not {self.after}.")


Operation = LowRank | Shift | Clamp | Detour | Exit
VERBS: dict[str, type[Operation]] = {
    v.__name__: v for v in (LowRank, Shift, Clamp, Detour, Exit)
}


@dataclass(frozen=True, eq=False)
class Patch:
    """Everything that one row wants changed; the empty patch changes nothing."""

    operations: tuple[Operation, ...] = field(default=())

    def __or__(self, other: "Patch") -> "Patch":
        """Both changes. LowRanks, Shifts and Clamps commute: they are kept in digest order."""
        both = (*self.operations, *other.operations)
        exits = {(o.tower, o.after) for o in both if isinstance(o, Exit)}
        if len(exits) > len({tower for tower, _ in exits}):
            raise BadPatch("A row can leave a tower only once.")
        return Patch(tuple(sorted(both, key=digest_of)))

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
        parts = sorted(digest_of(o) for o in self.operations)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def sites(self) -> frozenset[str]:
        """The linear layers and streams that are named."""
        return frozenset(o.site for o in self if isinstance(o, LowRank | Shift | Clamp))

    @property
    def rank(self) -> int:
        """The sum of the ranks of all LowRank operations."""
        return sum(o.left.shape[1] for o in self if isinstance(o, LowRank))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (getattr(o, f.name) for o in self for f in fields(o))
        return sum(t.nbytes for t in tensors if isinstance(t, Tensor))


def digest_of(operation: Operation) -> str:
    """SHA-256 of one operation's verb, numbers and tensors."""
    found = hashlib.sha256(type(operation).__name__.encode())
    for name in (f.name for f in fields(operation)):
        value = getattr(operation, name)
        if isinstance(value, Tensor):
            dense = value.detach().to("cpu", torch.float32).contiguous()
            found.update(f"{name}{tuple(dense.shape)}".encode() + dense.numpy().tobytes())
        else:
            found.update(f"{name}={json.dumps(value)}".encode())
    return found.hexdigest()


def _stream(site: str, verb: str) -> None:
    if Site.parse(site).kind != "stream":
        raise BadPatch(f"{verb} needs a stream, {site} is a linear layer.")


def _finite(operation: Operation) -> None:
    for f in fields(operation):
        value = getattr(operation, f.name)
        if isinstance(value, Tensor) and not bool(torch.isfinite(value.detach()).all()):
            raise BadPatch(f"{type(operation).__name__}.{f.name} is not finite.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))
