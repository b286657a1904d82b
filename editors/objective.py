"""What the value is pulled towards: the fact's target, away from what it meant before.

Source: ReFACT section 3.2; the pull is a softmax over negative distances (not squared, no
temperature) or over scaled cosines. The released code's KL regulariser is `divergence`.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Similarity = Literal["l2", "cosine"]
_ROUNDING = 1e-5
"""Distances below this share of the target's norm are rounding and have no direction.

The edit prompt's own embedding is a negative: at the first step its distance is zero, and in
float32 the gradient of such a norm is a random unit vector, which moved the whole fit by 8 to 40 %.
"""


def similarities(
    embedded: Float[Tensor, "p d"],
    targets: Float[Tensor, "... t d"],
    kind: Similarity,
    scale: float,
) -> Float[Tensor, "p t"]:
    """s_ij between prompt i and target j; targets are (t, d) or (p, t, d)."""
    if kind == "cosine":
        a = torch.nn.functional.normalize(embedded, dim=-1)[:, None]
        b = torch.nn.functional.normalize(targets, dim=-1)
        return scale * (a * b).sum(-1)
    squares = (embedded[:, None] - targets).square().sum(-1)
    floor = (_ROUNDING**2 * targets.square().sum(-1)).expand_as(squares)
    return -torch.where(squares > floor, squares, floor).sqrt()


def pull(s: Float[Tensor, "p t"], contrastive: bool) -> Float[Tensor, ""]:
    """-mean log softmax towards target 0, or -mean of its similarity alone."""
    if contrastive:
        return -torch.log_softmax(s, dim=-1)[:, 0].mean()
    return -s[:, 0].mean()


def belief(s: Float[Tensor, "p t"]) -> float:
    """mean_i P(target): the fit stops where it exceeds 0.99."""
    return float(torch.softmax(s.detach(), dim=-1)[:, 0].mean())


def decay(change: Float[Tensor, " d"], start: Float[Tensor, " d"]) -> Float[Tensor, ""]:
    """||delta|| / ||v0||^2: a plain norm, as published."""
    return torch.linalg.vector_norm(change) / start.square().sum()


def divergence(now: Float[Tensor, "c m"], first: Float[Tensor, "c m"]) -> Float[Tensor, ""]:
    """KL(now || first) of each caption's softmax over pictures, summed, by the captions' number."""
    told, before = torch.log_softmax(now, dim=-1), torch.log_softmax(first, dim=-1)
    return (told.exp() * (told - before)).sum() / len(now)
