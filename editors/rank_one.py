"""The closed form: the least change, as the keys' second moment measures it, that writes values.

Source: ReFACT (Arad et al., NAACL 2024) section 3.3, after ROME; several keys as in a weighted
least-squares problem with equality constraints.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editors.errors import BadMoment, EditsConflict

RIDGES = (0.0, 1e-6, 1e-5, 1e-4)


@dataclass(frozen=True)
class Factor:
    """A Cholesky factor of a moment and the ridge (share of the mean diagonal) that it needed."""

    lower: Float[Tensor, "inner inner"]
    ridge: float


def factor(moment: Float[Tensor, "inner inner"]) -> Factor:
    """Cholesky in float64; a ridge of 1e-6 to 1e-4 only if it does not succeed without.

    Raises:
        BadMoment: Not factorable even then.
    """
    mean = moment.diagonal().mean()
    eye = torch.eye(len(moment), dtype=torch.float64)
    for ridge in RIDGES:
        lower, bad = torch.linalg.cholesky_ex(moment.double() + ridge * mean * eye)
        if not int(bad) and bool(torch.isfinite(lower).all()):
            return Factor(lower, ridge)
    raise BadMoment("The second moment of the keys is singular even with a ridge of 1e-4.")


def condition(moment: Float[Tensor, "inner inner"], ridge: float) -> float:
    """Largest over smallest eigenvalue in float64, with the ridge that `factor` needed."""
    values = torch.linalg.eigvalsh(moment.double()) + ridge * float(moment.diagonal().mean())
    return float(values[-1] / values[0])


def solve_keys(keys: Float[Tensor, "m inner"], moment: Factor) -> Float[Tensor, "m inner"]:
    """C^-1 k for every key, in float64."""
    return torch.cholesky_solve(keys.double().mT, moment.lower).mT


def joint(
    keys: Float[Tensor, "m inner"],
    solved: Float[Tensor, "m inner"],
    values: Float[Tensor, "m out"],
) -> tuple[Float[Tensor, "out m"], Float[Tensor, "m inner"]]:
    """left, right with (left @ right) @ key_i = value_i for every i, exactly.

    dW = D G^-1 A^T with G = A^T K; for one key this is dW = d a^T / (a . k).

    Raises:
        EditsConflict: G is singular: two keys are the same and want different values.
    """
    gram = solved.double() @ keys.double().mT
    scale = gram.diagonal().abs().clamp_min(1e-300).rsqrt()
    balanced = gram * scale[:, None] * scale[None, :]
    if not bool(torch.isfinite(balanced).all()) or float(torch.linalg.cond(balanced)) > 1e10:
        raise EditsConflict("Two keys", "they are parallel")
    weights = torch.linalg.solve(gram.mT, values.double())
    return weights.mT, solved.double()
