"""Training featurizers: AdamW at a constant rate without weight decay, no early stop.

All sets are pooled and shuffled. Handles that begin at one layer are trained in one forward, each
with its own rows, parameters and moments: alone, every one would see the same batches in the same
order.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Int
from torch import Tensor

from evaluation.variables.learning import Learner
from evaluation.variables.objective import Objective
from evaluation.variables.trials import Trial, Trials
from evaluation.variables.units import Handle
from models.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How featurizers are trained.

    Attributes:
        batch: Rows of a step.
        rate: Of AdamW.
        sparsity: Lambda, the weight of the gates' sum; 0 in every published baseline.
    """

    epochs: Annotated[int, Ge(1), Le(1000)] = 8
    batch: Annotated[int, Ge(1), Le(4096)] = 64
    rate: Annotated[float, Gt(0), Le(10)] = 1e-2
    sparsity: Annotated[float, Ge(0)] = 0.0


@dataclass(frozen=True, eq=False)
class Pupil:
    """A handle and a learner for each of its units."""

    handle: Handle
    learners: tuple[Learner, ...]

    @property
    def trial(self) -> Trial:
        """The handle, changed as training sees it."""
        return Trial(self.handle, tuple(learner.change for learner in self.learners))


def train(
    trials: Trials,
    pupils: Sequence[Pupil],
    objective: Objective,
    recipe: Recipe,
    seed: int = 0,
) -> Generator[Progress, None, list[list[float]]]:
    """Train all of them; per pupil the loss of every step, penalties left out.

    Args:
        trials: Rows to train on.
        pupils: What learns.
        objective: What is minimised.
        recipe: How long, and in which steps.
        seed: Of the batches' order.
    """
    losses: list[list[float]] = [[] for _ in pupils]
    shuffle = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(trials.table), generator=shuffle) for _ in range(recipe.epochs)]
    batches = [index for order in orders for index in trials.batches(order, recipe.batch)]
    steps = len(batches)
    groups = list(trials.together([pupil.trial for pupil in pupils], recipe.batch))
    for done, group in enumerate(groups):
        some = [pupils[i] for i in group]
        for step, values in enumerate(_steps(trials, some, objective, recipe, batches)):
            for i, value in zip(group, values, strict=True):
                losses[i].append(value)
            yield Progress(
                stage="training",
                done=done * steps + step + 1,
                total=len(groups) * steps,
                message=some[0].handle[0].name,
                values={"loss": sum(values) / len(values)},
            )
    return losses


def _steps(
    trials: Trials,
    pupils: Sequence[Pupil],
    objective: Objective,
    recipe: Recipe,
    batches: Sequence[Int[Tensor, " some"]],
) -> Generator[list[float], None, None]:
    learners = [learner for pupil in pupils for learner in pupil.learners]
    parameters = list(chain.from_iterable(learner.parameters for learner in learners))
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
    for step, index in enumerate(batches):
        for learner in learners:
            learner.cool(step / max(len(batches) - 1, 1))
        found = trials.logits([pupil.trial for pupil in pupils], index)
        each = [objective.loss(logits, index) for logits in found]
        penalties = [learner.penalty(recipe.sparsity) for learner in learners]
        optimiser.zero_grad()
        torch.stack([*each, *penalties]).sum().backward()
        optimiser.step()
        trials.cost.backwards += 1
        yield torch.stack(each).tolist()
