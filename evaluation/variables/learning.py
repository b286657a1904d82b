"""What is learned about a unit: a rotation (DAS), or which features matter (DBM).

DAS: W (d, n) orthonormal under torch's `orthogonal` parametrisation, orthogonal at the start, in
float32; all n features are swapped. DBM: one logit per feature, 0 at the start; gate =
sigmoid(logit / T), f' = (1 - gate) f_base + gate f_cf, T falls linearly from 1 to 0.01 over all
steps; trained soft, evaluated hard (gate > 1/2), plus lambda * sum(gate).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from evaluation.variables.errors import BadStudy
from evaluation.variables.featurizers import (
    Codes,
    Coordinates,
    Directions,
    Featurizer,
    swapped,
)

HOT, COLD = 1.0, 0.01
"""Temperatures of the first and of the last step."""


class Learner(Protocol):
    """A featurizer that is being learned, for one unit."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """What is learned."""
        ...

    def change(self, base: Tensor, source: Tensor) -> Tensor:
        """The unit after a swap, as training sees it."""
        ...

    def cool(self, share: float) -> None:
        """This share of the steps, 0 to 1, is behind."""
        ...

    def penalty(self, sparsity: float) -> Tensor:
        """What is added to the loss."""
        ...

    def finished(self) -> Featurizer:
        """What was learned, as it is evaluated."""
        ...


class Rotation(nn.Module):
    """W, orthonormal whatever the optimiser does; its state is laid out as submissions have it."""

    weight: Tensor

    def __init__(self, width: int, n: int, seed: int) -> None:
        """An orthonormal (width, n) drawn by the seed; the process' own generator is left alone."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = nn.init.orthogonal_(torch.empty(width, n))
            self._constrain(start)

    @classmethod
    def of(cls, rotation: Tensor) -> "Rotation":
        """The same around given directions."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made._constrain(rotation.detach().float().cpu())
        return made

    def _constrain(self, start: Tensor) -> None:
        self.weight = nn.Parameter(start)
        parametrizations.orthogonal(self)


class Das:
    """A learned rotation into n features, all of them swapped."""

    def __init__(self, width: int, n: int, seed: int, device: torch.device | str = "cpu") -> None:
        """A random rotation.

        Raises:
            BadStudy: The unit has fewer than n numbers.
        """
        if not 1 <= n <= width:
            raise BadStudy(f"{n} directions do not fit a unit of {width} numbers.", "n")
        self.rotate = Rotation(width, n, seed).to(device)

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """The rotation's."""
        return tuple(self.rotate.parameters())

    def change(self, base: Tensor, source: Tensor) -> Tensor:
        """(cf - base) W W^T is added."""
        features = Directions(rotation=self.rotate.weight)
        return swapped(features, features.differences(base, source), base)

    def cool(self, share: float) -> None:
        """There is no temperature."""

    def penalty(self, sparsity: float) -> Tensor:  # noqa: ARG002 - as `Learner` has it
        """There is none."""
        return torch.zeros((), device=self.rotate.weight.device)

    def finished(self) -> Featurizer:
        """All n directions."""
        rotation = self.rotate.weight.detach().clone()
        return Featurizer(kind="das", features=Directions(rotation=rotation))


class Mask:
    """A learned choice among features that are given."""

    def __init__(
        self,
        kind: str,
        features: Coordinates | Directions | Codes,
        device: torch.device | str = "cpu",
    ) -> None:
        """Every gate begins at one half."""
        self.kind, self.features = kind, features
        self.logits = nn.Parameter(torch.zeros(features.count, device=device))
        self.temperature = HOT

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """The logits."""
        return (self.logits,)

    @property
    def gate(self) -> Tensor:
        """How much of each feature comes from the counterfactual."""
        return torch.sigmoid(self.logits / self.temperature)

    def change(self, base: Tensor, source: Tensor) -> Tensor:
        """The gated difference, gate * (f_cf - f_base), is added among the features."""
        moves = self.features.differences(base, source)
        return swapped(self.features, moves * self.gate.to(moves.dtype), base)

    def cool(self, share: float) -> None:
        """Linear from hot to cold."""
        self.temperature = HOT + (COLD - HOT) * share

    def penalty(self, sparsity: float) -> Tensor:
        """Lambda * sum(gate)."""
        return sparsity * self.gate.sum()

    def finished(self) -> Featurizer:
        """Features whose gate is above one half; it may be none."""
        chosen = (self.logits.detach() > 0).nonzero().flatten().tolist()
        return Featurizer(kind=self.kind, features=self.features, chosen=tuple(chosen))
