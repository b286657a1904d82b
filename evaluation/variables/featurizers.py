"""Features of a unit, and what becomes of it when some of them come from the counterfactual.

Every one is f = F(x) with a linear way back: x' = x + sum over chosen i of (f_i(cf) - f_i(base)) *
row_i. No decoder runs, and what the features do not explain stays the base's. Covered: all of the
unit, its coordinates, orthonormal directions (DAS, PCA, SVD), an SAE's codes. An empty choice
changes nothing; nobody may report it as a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.variables.errors import BadStudy
from steerers.activation import TopK, contents
from steerers.dictionary import Dictionary


class Features(Protocol):
    """A way to write a unit as features."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def differences(
        self, base: Float[Tensor, "*rows d"], source: Float[Tensor, "*rows d"]
    ) -> Float[Tensor, "*rows n"]:
        """By how much each feature differs, counterfactual minus base."""
        ...

    def back(
        self, moves: Float[Tensor, "*rows n"], base: Float[Tensor, "*rows d"]
    ) -> Float[Tensor, "*rows d"]:
        """What is added to the unit so that its features move by so much."""
        ...


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """The unit's own numbers."""

    count: int

    def differences(self, base: Tensor, source: Tensor) -> Tensor:
        """Of each coordinate."""
        return source - base

    def back(self, moves: Tensor, base: Tensor) -> Tensor:  # noqa: ARG002 - as `Features` has it
        """The moves themselves."""
        return moves


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """Coordinates in an orthonormal system of directions.

    Attributes:
        rotation: (d, n), W; its columns are the directions.
    """

    rotation: Float[Tensor, "d n"]

    @property
    def count(self) -> int:
        """The number of directions, n."""
        return self.rotation.shape[1]

    def differences(self, base: Tensor, source: Tensor) -> Tensor:
        """(cf - base) W."""
        return (source - base).to(self.rotation.dtype) @ self.rotation

    def back(self, moves: Tensor, base: Tensor) -> Tensor:  # noqa: ARG002 - as `Features` has it
        """The moves times W^T."""
        return moves @ self.rotation.mT


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """The codes of an SAE; decoding's error stays the base's."""

    dictionary: Dictionary

    @property
    def count(self) -> int:
        """Features of the SAE."""
        return self.dictionary.features

    def differences(self, base: Tensor, source: Tensor) -> Tensor:
        """encode(cf) - encode(base)."""
        return self.dictionary.encode(source) - self.dictionary.encode(base)

    def back(self, moves: Tensor, base: Tensor) -> Tensor:
        """Moves times decoder rows, on the scale that decoding restores."""
        return moves @ self.dictionary.decoder * self.dictionary.output_scale(base)

    def only(self, chosen: Sequence[int]) -> "Codes | None":
        """These features alone; None where a code depends on the other features."""
        whole = self.dictionary
        if isinstance(whole.activation, TopK):
            return None
        index = torch.tensor(chosen, device=whole.encoder.device)
        numbers = contents(whole.activation)
        picked = {n: v[index] if isinstance(v, Tensor) else v for n, v in numbers}
        narrow = replace(
            whole,
            encoder=whole.encoder[:, index],
            encoder_bias=whole.encoder_bias[index],
            decoder=whole.decoder[index],
            activation=type(whole.activation)(**picked),  # pyright: ignore[reportArgumentType]
        )
        return Codes(dictionary=narrow)


@dataclass(frozen=True, kw_only=True, eq=False)
class Featurizer:
    """Features of one unit and which of them are swapped.

    Attributes:
        kind: How it was made: `full`, `das`, `dbm`, `dbm_pca`, `sae`, ...
        features: None is the whole unit, replaced as it is.
        chosen: Of the features; None is all.
    """

    kind: str
    features: Coordinates | Directions | Codes | None = None
    chosen: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.features is None and self.chosen is not None:
            raise BadStudy("The whole unit has no features to choose.", "featurizer")
        if self.features is not None and self.chosen is not None:
            wrong = [i for i in self.chosen if not 0 <= i < self.features.count]
            if wrong or len(set(self.chosen)) < len(self.chosen):
                raise BadStudy(
                    f"Features count from 0 to {self.features.count - 1}, each once.", "features"
                )

    @property
    def count(self) -> int | None:
        """How many features are swapped; None is the whole unit."""
        if self.chosen is not None:
            return len(self.chosen)
        return None if self.features is None else self.features.count

    @property
    def empty(self) -> bool:
        """Whether it changes nothing."""
        return self.count == 0

    def __call__(
        self, base: Float[Tensor, "*rows d"], source: Float[Tensor, "*rows d"]
    ) -> Float[Tensor, "*rows d"]:
        """The unit with the chosen features of the counterfactual."""
        if self.features is None:
            return source
        if self.empty:
            return base
        if self._narrow is not None:
            return swapped(self._narrow, self._narrow.differences(base, source), base)
        moves = self.features.differences(base, source)
        if self.chosen is not None:
            moves = moves * self._gate.to(moves)
        return swapped(self.features, moves, base)

    def choosing(self, chosen: Sequence[int]) -> "Featurizer":
        """The same features, others of them."""
        return replace(self, chosen=tuple(sorted(chosen)))

    @cached_property
    def _narrow(self) -> Codes | None:
        """Where only the named columns of an SAE are needed, these."""
        if not isinstance(self.features, Codes) or self.chosen is None:
            return None
        return self.features.only(self.chosen)

    @cached_property
    def _gate(self) -> Float[Tensor, " n"]:
        assert self.features is not None  # noqa: S101 - `__call__` looked
        gate = torch.zeros(self.features.count)
        gate[list(self.chosen or ())] = 1
        return gate


def swapped(features: Features, moves: Tensor, base: Tensor) -> Tensor:
    """The base, moved in the space of its features; in the base's dtype."""
    return base + features.back(moves, base).to(base.dtype)


FULL = Featurizer(kind="full")


def random_like(featurizer: Featurizer, width: int, seed: int) -> Featurizer:
    """Random features of equal number, of the same space: the control.

    For directions other ones are drawn, uniformly; of coordinates and codes others are chosen.
    For the whole unit there is no other choice: it is returned.
    """
    features, generator = featurizer.features, torch.Generator().manual_seed(seed)
    if features is None or featurizer.count is None:
        return featurizer
    if isinstance(features, Directions):
        drawn = torch.randn(width, featurizer.count, generator=generator, dtype=torch.float64)
        made = Directions(rotation=torch.linalg.qr(drawn).Q.to(features.rotation))
        return Featurizer(kind="random", features=made)
    order = torch.randperm(features.count, generator=generator)[: featurizer.count]
    return Featurizer(kind="random", features=features, chosen=tuple(sorted(order.tolist())))
