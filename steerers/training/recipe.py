"""Which SAE is wanted, and how it is trained."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

Kind = Literal["jumprelu", "topk", "batchtopk"]
KINDS: tuple[Kind, ...] = ("jumprelu", "topk", "batchtopk")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One SAE to train.

    Attributes:
        id: What requests will call it.
        site: The stream that it reads and writes, as `lm.block.3`.
        features: How many it shall have; 8 to 16 times the width is usual.
        l0: Active features per token: the k of TopK, the mean that the others are led to.
    """

    id: str
    site: str
    kind: Kind
    features: Annotated[int, Ge(1)]
    l0: Annotated[int, Ge(1)] = 24


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How SAEs are trained; the input is scaled to the norm sqrt(d), and thresholds with it."""

    tokens: Annotated[int, Ge(1)] = 2_000_000
    """Seen in training; texts are read again when there are fewer."""
    batch: Annotated[int, Ge(1)] = 2048
    rate: Annotated[float, Gt(0)] = 2e-3
    threshold_rate: Annotated[float, Gt(0)] = 2e-2
    """Of the thresholds' logarithms: they begin too high and have further to go than weights."""
    decay: Annotated[float, Gt(0), Le(1)] = 0.4
    """The last share of the steps, in which the rate falls to zero."""
    warmup: Annotated[float, Gt(0), Le(1)] = 0.05
    """The first share of the steps, in which rate and sparsity rise."""
    bandwidth: Annotated[float, Gt(0)] = 0.1
    """Of the rectangle around a JumpReLU's threshold in which the straight-through estimator
    passes gradients (Rajamanoharan et al. 2024)."""
    sparsity: Annotated[float, Gt(0)] = 1.0
    """What (L0 / target - 1)^2 weighs against the fraction of variance unexplained."""
    dead_after: Annotated[int, Ge(1)] = 100_000
    """Tokens without activity after which a feature counts as dead."""
    revival: Annotated[float, Ge(0)] = 1 / 32
    """Weight of the loss by which dead features learn what the others leave (Gao et al. 2024)."""
    buffer: Annotated[int, Ge(1)] = 65_536
    """Tokens that are shuffled together: so many times the widths of all sites times 4 bytes."""
    text_tokens: Annotated[int, Ge(1)] = 128
    """Where longer texts are cut."""
    held_out: Annotated[int, Ge(1)] = 256
    """Texts, the first ones, that are measured on and not learned from."""
    bfloat16: bool = False
    """Multiply in bfloat16; faster where the processor can."""
    seed: int = 0

    @property
    def steps(self) -> int:
        """Batches in training."""
        return max(1, self.tokens // self.batch)
