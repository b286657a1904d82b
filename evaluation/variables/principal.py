"""Directions that need no training: the leading ones of what units hold.

Truncated SVD of base and counterfactual activations together, z-scored (PCA) or as they are (SVD);
n = min(samples, d) - 1 unless fewer are asked for. They are applied to raw activations.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.variables.featurizers import Directions


def principal(
    activations: Float[Tensor, "samples d"], *, standardise: bool, n: int | None = None
) -> Directions:
    """The leading right singular vectors, in float64 and kept in float32.

    Args:
        activations: Of base and counterfactual, one behind the other; at least two.
        standardise: Whether each number is z-scored first; constant ones are only centred.
        n: At most so many; None is all that the rule allows.
    """
    x = activations.double()
    if standardise:
        deviation = x.std(0, correction=0)
        x = (x - x.mean(0)) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    most = max(1, min(x.shape) - 1)
    found = torch.linalg.svd(x, full_matrices=False).Vh[: most if n is None else min(n, most)]
    return Directions(rotation=found.mT.float().contiguous())
