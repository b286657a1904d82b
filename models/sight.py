"""What a prompt shows: pictures on their way from the processor to the residual stream.

A `Sight` is what the processor made of a prompt's pictures and where they stand; a `Seen` is what
the vision tower made of that, once. Both belong to one row and travel with it: positions of
pictures are never kept on the model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

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
        digests: Per picture SHA-256 of its pixels and of how the processor is set.
    """

    inputs: Mapping[str, Tensor]
    visual: tuple[int, ...]
    reference: tuple[int, ...]
    spans: tuple[Span, ...]
    joint: tuple[Span, ...] = ()
    turns: Int[Tensor, "axes tokens"] | None = None
    offset: int = 0
    digests: tuple[str, ...]

    @property
    def pictures(self) -> int:
        """How many."""
        return len(self.digests)

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
        """SHA-256 of all pictures in order: they decide what the vision tower makes of them."""
        return hashlib.sha256("\n".join(self.digests).encode()).hexdigest()

    def told(self, first: int, end: int) -> str:
        """What begins between two columns: pictures by content, and what sees itself both ways.

        With the tokens it says all that a forward over these columns reads of the pictures, where
        what stands before is known. Where a picture is not a span of its own (two side by side in
        one run, or one in several crops) all pictures are named together.
        """
        begun = [i for i, span in enumerate(self.spans) if first <= span[0] < end]
        apart = len(self.spans) == len(self.digests)
        shown = [(self.spans[i], self.digests[i] if apart else self.digests) for i in begun]
        joint = [span for span in self.joint if first <= span[0] < end]
        return repr((shown, joint)) if shown or joint else ""

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
