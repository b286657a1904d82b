"""What is asked of a swap: the expected answer, or a difference of two logits.

IIA is the share of rows whose greedy continuation contains the expected text; training minimises
the cross-entropy of its tokens. The indirect object's task has numbers instead: logit(base's
answer) - logit(distractor) is predicted as bias + token_coeff * t + position_coeff * p, t and p
being +1 or -1 after the swap, and the squared error is trained and reported.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evaluation.behaviours.swaps import SwapIds
from evaluation.variables.errors import BadStudy
from evaluation.variables.table import NO_LABEL, Table

Checker = Callable[[str, str], bool]
"""Whether the expected text (first) is what was said (second)."""


def contains(expected: str, said: str) -> bool:
    """The benchmark's own test: what was said contains what is expected."""
    return expected in said


def contains_word(expected: str, said: str) -> bool:
    """The same for tokenizers that drop a text's leading space: spaces at the ends do not count."""
    return expected.strip() in said


def same_number(expected: str, said: str) -> bool:
    """Whether the first number that is said is the expected one; leading zeros do not count.

    Where nothing is expected anything is right; where no number is expected, nothing is.
    """
    if not expected.strip():
        return True
    found, wanted = (re.search(r"-?\d+", text) for text in (said, expected))
    return found is not None and wanted is not None and int(found[0]) == int(wanted[0])


CHECKERS: dict[str, Checker] = {
    "contains": contains,
    "contains_word": contains_word,
    "same_number": same_number,
}


class Objective(Protocol):
    """What training minimises, from logits behind the wanted tokens."""

    def loss(self, logits: Float[Tensor, "some m vocab"], index: Int[Tensor, " some"]) -> Tensor:
        """The mean over some rows of the table."""
        ...


@dataclass(frozen=True, eq=False)
class Answers:
    """The cross-entropy of the expected answers' tokens, filling ignored."""

    table: Table

    def loss(self, logits: Float[Tensor, "some m vocab"], index: Int[Tensor, " some"]) -> Tensor:
        """The mean over tokens."""
        labels = self.table.labels[index]
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL
        )


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Of the predicted logit difference."""

    bias: float
    token: float
    position: float

    def predicted(self, signs: tuple[int, int]) -> float:
        """The difference at these signs of token and position."""
        return self.bias + self.token * signs[0] + self.position * signs[1]


@dataclass(frozen=True, eq=False)
class Differences:
    """The squared error of the logit difference."""

    table: Table
    coefficients: Coefficients

    def loss(self, logits: Float[Tensor, "some m vocab"], index: Int[Tensor, " some"]) -> Tensor:
        """The mean over rows."""
        return self.errors(logits, index).mean()

    def errors(
        self, logits: Float[Tensor, "some m vocab"], index: Int[Tensor, " some"]
    ) -> Float[Tensor, " some"]:
        """Of each row."""
        swaps = [self.table.swaps[i] for i in index.tolist()]
        aims = [self.coefficients.predicted(s.signs[self.table.variable]) for s in swaps]
        aim = torch.tensor(aims, device=logits.device)
        return (difference(logits[:, 0], swaps) - aim).square()


def difference(
    logits: Float[Tensor, "some vocab"], swaps: Sequence[SwapIds]
) -> Float[Tensor, " some"]:
    """logit(first token of the base's answer) - logit(first token of its distractor)."""
    pairs = [(swap.base_answer[0], swap.distractor[0]) for swap in swaps]
    picked = logits.gather(1, torch.tensor(pairs, device=logits.device))
    return picked[:, 0] - picked[:, 1]


def least_squares(differences: Sequence[float], signs: Sequence[tuple[int, int]]) -> Coefficients:
    """The coefficients that predict measured differences best.

    Raises:
        BadStudy: The signs do not determine them: four sets of counterfactuals do.
    """
    design = np.array([[1.0, token, position] for token, position in signs])
    if np.linalg.matrix_rank(design) < 3:
        raise BadStudy(
            "The sets do not tell token from position, so no coefficients can be fitted.", "dataset"
        )
    bias, token, position = np.linalg.lstsq(design, np.asarray(differences), rcond=None)[0]
    return Coefficients(bias=float(bias), token=float(token), position=float(position))
