"""The norm in front of a destination, and what it does to small changes and to gradients.

With the normalised input x^, the norm's scale s and y~ = gain * y:
LayerNorm  J^T y = (y~ - mean(y~) - x^ mean(x^ y~)) / s;  RMSNorm drops mean(y~).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evaluation.circuits.errors import NoGraph


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm or an RMSNorm.

    Attributes:
        gain: What multiplies the normalised input (1 + w where the class keeps w).
        eps: Added to the mean square.
        centred: Whether the mean is taken off first.
    """

    gain: Float[Tensor, " d"]
    eps: float
    centred: bool

    def split(
        self, x: Float[Tensor, "*rows d"]
    ) -> tuple[Float[Tensor, "*rows d"], Float[Tensor, "*rows 1"]]:
        """The normalised input, before the gain, and 1/s."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * scale, scale

    def pulled(
        self,
        normed: Float[Tensor, "*rows d"],
        scale: Float[Tensor, "*rows 1"],
        y: Float[Tensor, "*rows d"],
    ) -> Float[Tensor, "*rows d"]:
        """The gradient at the input, given the one at the output: J^T y."""
        return self._projected(normed, scale, self.gain * y)

    def pushed(
        self,
        normed: Float[Tensor, "*rows d"],
        scale: Float[Tensor, "*rows 1"],
        change: Float[Tensor, "*rows d"],
    ) -> Float[Tensor, "*rows d"]:
        """What a small change of the input does to the output: J change."""
        return self.gain * self._projected(normed, scale, change)

    def _projected(self, normed: Tensor, scale: Tensor, y: Tensor) -> Tensor:
        along = (normed * y).mean(-1, keepdim=True)
        projected = torch.addcmul(y, normed, along, value=-1)
        if self.centred:
            projected -= y.mean(-1, keepdim=True)
        return projected.mul_(scale)


def read_norm(module: nn.Module, model: str) -> Norm:
    """The norm of a module, checked against what the module computes.

    Raises:
        NoGraph: It is neither a LayerNorm nor an RMSNorm.
    """
    found: Any = module
    weight: Tensor = found.weight.detach()
    eps = getattr(found, "eps", None) or getattr(found, "variance_epsilon", None)
    if eps is None:
        raise NoGraph(model, f"nobody knows the norm {type(module).__name__}")
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    gain = 1 + weight if type(module).__name__.startswith("Gemma") else weight
    norm = Norm(gain=gain, eps=float(eps), centred=isinstance(module, nn.LayerNorm))
    if not _agrees(norm, module):
        raise NoGraph(model, f"{type(module).__name__} is neither a LayerNorm nor an RMSNorm")
    return norm


@torch.no_grad()
def _agrees(norm: Norm, module: nn.Module) -> bool:
    dtype = next(module.parameters()).dtype
    x = torch.linspace(-1.0, 2.0, len(norm.gain), device=norm.gain.device, dtype=norm.gain.dtype)
    bias = getattr(module, "bias", None)
    ours = norm.gain * norm.split(x)[0] + (0 if bias is None else bias.to(x.dtype))
    theirs = module(x[None].to(dtype))[0].to(x.dtype)
    loose = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4
    return torch.allclose(ours, theirs, rtol=loose, atol=loose)
