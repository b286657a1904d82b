"""Who or what is in a picture: a judge is a function.

The miniature brings its own, a classifier that never saw a generated picture; it is handed in by
the caller. The one for real checkpoints is in `zero_shot`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Picture = np.ndarray
"""(height, width, 3) uint8."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge saw: the best answer, and how probable it thought each that it knows of."""

    best: str
    probabilities: Mapping[str, float]
    similarity: float | None = None
    """Cosine with the first of the answers that were asked for, where the judge has one."""


Judge = Callable[[Sequence[Picture], Sequence[tuple[str, str]]], list[Verdict]]
"""judge(pictures, answers): per picture the two answers that are asked for, right one first.

A judge over two texts answers with one of them (ties are nobody's: `best` is ""); a classifier may
answer with any of its labels.
"""


def choice(answers: Sequence[str], logits: Sequence[float]) -> Verdict:
    """The softmax of one logit per answer as a verdict; on a tie nobody wins."""
    shares = np.exp(np.asarray(logits) - max(logits))
    shares = (shares / shares.sum()).tolist()
    best = [a for a, share in zip(answers, shares, strict=True) if share == max(shares)]
    return Verdict(
        best=best[0] if len(best) == 1 else "",
        probabilities=dict(zip(answers, shares, strict=True)),
    )


def cake_bar(cosines: Sequence[float]) -> float:
    """CAKE's bar for "shows it": mean less two deviations over pictures of the unedited model."""
    values = np.asarray(cosines, dtype=np.float64)
    return float(values.mean() - 2 * values.std())
