"""How an SAE turns pre-activations into codes: ReLU, JumpReLU, TopK, gated.

BatchTopK and Matryoshka dictionaries are a JumpReLU with one threshold once they are trained.
"""

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steerers.errors import BadDictionary


@dataclass(frozen=True, eq=False)
class ReLU:
    """a = max(z, 0)."""

    kind: ClassVar[str] = "relu"

    def __call__(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Codes of pre-activations."""
        return z.relu()


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """a = z where z > threshold and z > 0, else 0: strictly greater.

    Attributes:
        threshold: (features), always float32: a threshold in bfloat16 spoils a dictionary.
    """

    threshold: Tensor
    kind: ClassVar[str] = "jumprelu"

    def __call__(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Codes of pre-activations."""
        return z.relu() * (z > self.threshold)


@dataclass(frozen=True, eq=False)
class TopK:
    """The k largest stay, the others are 0; then ReLU.

    Attributes:
        k: How many stay.
        weights: (features), by which z is multiplied for the choice alone; None chooses by z.
    """

    k: int
    weights: Tensor | None = None
    kind: ClassVar[str] = "topk"

    def __call__(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Codes of pre-activations."""
        chosen = (z if self.weights is None else z * self.weights).topk(self.k, dim=-1).indices
        return torch.zeros_like(z).scatter(-1, chosen, z.gather(-1, chosen).relu())


@dataclass(frozen=True, eq=False)
class Gated:
    """a = max(exp(r_mag) e + magnitude_bias, 0) where e + gate_bias > 0, else 0.

    Rajamanoharan et al. 2024. e has no bias of its own: the dictionary's encoder bias is 0.

    Attributes:
        gate_bias: (features).
        r_mag: (features), the logarithm of the magnitude path's scale.
        magnitude_bias: (features).
    """

    gate_bias: Tensor
    r_mag: Tensor
    magnitude_bias: Tensor
    kind: ClassVar[str] = "gated"

    def __call__(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Codes of pre-activations."""
        magnitude = z * self.r_mag.exp() + self.magnitude_bias
        return magnitude.relu() * (z + self.gate_bias > 0)


Activation = ReLU | JumpReLU | TopK | Gated


def contents(activation: Activation) -> list[tuple[str, Tensor | int | None]]:
    """Its numbers by name, in the order of the fields."""
    return [(f.name, getattr(activation, f.name)) for f in fields(activation)]


def prepared(activation: Activation, features: int) -> Activation:
    """The same in float32, checked against the number of features.

    Raises:
        BadDictionary: A tensor of another length or not finite, or a k that cannot be.
    """
    changed: dict[str, Tensor | int | None] = {}
    for name, value in contents(activation):
        if isinstance(value, Tensor):
            if value.shape != (features,):
                raise BadDictionary(f"{name} has shape {tuple(value.shape)}, not ({features},).")
            if not bool(torch.isfinite(value).all()):
                raise BadDictionary(f"{name} is not finite.")
            changed[name] = value.detach().float().contiguous()
        else:
            changed[name] = value
    if isinstance(activation, TopK) and not 0 < activation.k <= features:
        raise BadDictionary(f"TopK keeps {activation.k} of {features} features.")
    return type(activation)(**changed)  # type: ignore[arg-type]


def moved(activation: Activation, device: torch.device) -> Activation:
    """The same on a device."""
    there = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in contents(activation)}
    return type(activation)(**there)  # type: ignore[arg-type]
