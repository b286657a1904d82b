"""What a prompt shows: pictures on their way from the processor to the residual stream.

A `Sight` is what the processor made of a prompt's pictures and where they stand; a `Seen` is what
the vision tower made of that, once. Both belong to one row and travel with it: positions of
pictures are never kept on the model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

Span = tuple[int, int]
"""The first column, and the one past the last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """The pictures of one prompt, before the vision tower.

    Attributes:
        inputs: The image processor's tensors, as the family's vision tower takes them.
        visual: Columns of all image placeholders, ascending.
        reference: Columns that the paper's own code patches (Nikankin et al. 2025).
        spans: Each picture's columns; no piece of a prompt and no kept prefix ends inside.
        joint: Columns whose tokens see each other in both directions.
        turns: Rotary positions of the prompt's tokens (axes, tokens); None where a token's position
            is its column.
        offset: What is added to the column of a token behind the prompt.
        pictures: How many.
    """

    inputs: Mapping[str, Tensor]
    visual: tuple[int, ...]
    reference: tuple[int, ...]
    spans: tuple[Span, ...]
    joint: tuple[Span, ...] = ()
    turns: Int[Tensor, "axes tokens"] | None = None
    offset: int = 0
    pictures: int = 1

    @property
    def named(self) -> dict[str, tuple[int, ...]]:
        """What the named positions of a patch mean in this prompt."""
        return {"visual": self.visual, "reference": self.reference}

    @cached_property
    def uncut(self) -> tuple[Span, ...]:
        """Spans that one forward must hold whole."""
        return tuple(sorted({*self.spans, *self.joint}))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pictures as they were processed, and of where they stand."""
        found = hashlib.sha256(repr((self.visual, self.spans, self.joint)).encode())
        for name, tensor in sorted(self.inputs.items()):
            dense = tensor.detach().cpu().contiguous()
            found.update(f"{name}{tuple(dense.shape)}{dense.dtype}".encode())
            found.update(dense.view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the processor's tensors."""
        return sum(tensor.nbytes for tensor in self.inputs.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What the vision tower made of a prompt's pictures.

    Attributes:
        features: One row a visual column, in the scale of the stream that enters layer 0.
        deep: Per early decoder layer what is added behind it, at the visual columns (DeepStack).
    """

    features: Float[Tensor, "visual d"]
    deep: tuple[Float[Tensor, "visual d"], ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all features."""
        return sum(tensor.nbytes for tensor in (self.features, *self.deep))


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A row's pictures in a forward; `seen` may be missing where no visual column is run."""

    sight: Sight
    seen: Seen | None = None
    _places: dict[tuple[int, int], tuple[list[int], list[int]]] = field(
        default_factory=dict, repr=False
    )

    def here(self, start: int, tokens: int) -> tuple[list[int], list[int]]:
        """Of a forward over these columns: its visual tokens, and their rows in the features."""
        key = (start, tokens)
        if key not in self._places:
            stop = start + tokens
            pairs = [(c - start, i) for i, c in enumerate(self.sight.visual) if start <= c < stop]
            self._places[key] = [c for c, _ in pairs], [i for _, i in pairs]
        return self._places[key]

    def features(self) -> Seen:
        """What was seen; RuntimeError if nobody looked."""
        if self.seen is None:
            raise RuntimeError("A visual token is run, but nobody looked at its picture.")
        return self.seen


def spans_of(columns: Sequence[int]) -> tuple[Span, ...]:
    """Runs of neighbouring columns."""
    found: list[Span] = []
    for column in columns:
        if found and found[-1][1] == column:
            found[-1] = found[-1][0], column + 1
        else:
            found.append((column, column + 1))
    return tuple(found)


def joined_spans(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same columns in spans that do not overlap, ascending."""
    found: list[Span] = []
    for first, end in sorted(spans):
        if found and first < found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((first, end))
    return tuple(found)
