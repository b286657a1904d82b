"""Muon (Jordan et al. 2024) for many matrices of few shapes: each shape is one batched product.

The step of torch's own `Muon` with `match_rms_adamw`, which orthogonalises one matrix at a time;
a model of a hundred small matrices spends most of a step on starting kernels then.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz towards the nearest orthogonal matrices; (n, rows, columns), bfloat16."""
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class BatchedMuon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled to the size of AdamW's steps."""

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        groups: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for one in params:
            groups[one.shape].append(one)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": same} for same in groups.values()], defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step; where a shape's matrices have no gradients they rest."""
        del closure
        for group in self.param_groups:
            params: list[Tensor] = group["params"]
            found = [p.grad for p in params if p.grad is not None]
            if len(found) < len(params):
                continue
            grads = torch.stack(found)
            state = self.state[params[0]]
            if not state:
                state["mean"] = torch.zeros_like(grads)
            mean = state["mean"].lerp_(grads, 1 - group["momentum"])
            turned = orthogonalised(grads.lerp_(mean, group["momentum"])).to(params[0].dtype)
            rate = group["lr"] * 0.2 * max(params[0].shape) ** 0.5
            for one, towards in zip(params, turned.unbind(), strict=True):
                one.mul_(1 - group["lr"] * group["weight_decay"]).sub_(towards, alpha=rate)
