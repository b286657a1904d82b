"""Shares of right answers with their intervals: what is drawn again is a cluster, not an example.

Questions about one picture, or about pictures of one person, are right and wrong together: were
examples drawn one by one, the interval would be too narrow. So whole clusters are drawn with
replacement (`evaluation.protocol.resampled`), and a share is that of all examples in the draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from evaluation.protocol import resampled

NEGLIGIBLE = 0.01
"""Share of draws without a gap up to which the gap closed has an interval."""
_ENDS = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of right answers, or a difference of two, with its 95 % interval.

    Attributes:
        value: Of all examples.
        low, high: The bootstrap's percentiles.
        examples: That are counted.
        clusters: Of them, each drawn as a whole.
    """

    value: float
    low: float
    high: float
    examples: int
    clusters: int


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far words are ahead of pictures, and how much of that a plan closes.

    Attributes:
        ahead: Words less unpatched pictures, of the examples that have both forms.
        closed: (patched - unpatched) / (words - unpatched); None with a `reason`.
        without: Bootstrap draws in which words are not ahead, so that there is no such ratio.
        draws: All of them.
        reason: Why nothing is said of the gap closed.
    """

    ahead: Share
    closed: Share | None
    without: int
    draws: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are drawn."""

    resamples: int
    seed: int

    def share(self, clusters: Sequence[str], values: Float[np.ndarray, " examples"]) -> Share:
        """The mean of the values, and its interval."""
        means = self._means(clusters, values)[:, 0]
        return _share(float(values.mean()), means, clusters)

    def gap(
        self,
        clusters: Sequence[str],
        words: Float[np.ndarray, " examples"],
        plain: Float[np.ndarray, " examples"],
        patched: Float[np.ndarray, " examples"],
    ) -> Gap:
        """The gap and what is closed of it, over the same draws.

        A draw without a gap has no ratio, and leaving it out would leave out the smallest gaps:
        it counts as beyond both ends of the interval, which only makes the interval wider. Where
        more than `NEGLIGIBLE` of the draws are such, there is no interval.
        """
        drawn = self._means(clusters, words - plain, patched - plain)
        gap, gained = float((words - plain).mean()), float((patched - plain).mean())
        none = drawn[:, 0] <= 0
        without, draws = int(none.sum()), len(drawn)
        reason, closed = None, None
        if gap <= 0:
            reason = "words do no better than pictures"
        elif without > NEGLIGIBLE * draws:
            reason = f"in {without} of {draws} bootstrap draws words do no better than pictures"
        else:
            ratio = np.divide(drawn[:, 1], drawn[:, 0], out=np.zeros(draws), where=~none)
            closed = _share(gained / gap, ratio, clusters, beyond=none)
        ahead = _share(gap, drawn[:, 0], clusters)
        return Gap(ahead=ahead, closed=closed, without=without, draws=draws, reason=reason)

    def _means(
        self, clusters: Sequence[str], *values: Float[np.ndarray, " examples"]
    ) -> Float[np.ndarray, "resamples _"]:
        table = np.stack(values, axis=1)
        return resampled(clusters, table, resamples=self.resamples, seed=self.seed)


def _share(
    value: float,
    drawn: Float[np.ndarray, " resamples"],
    clusters: Sequence[str],
    beyond: np.ndarray | None = None,
) -> Share:
    """With the percentiles of what was drawn; draws that are `beyond` lie outside both ends."""
    low, high = drawn, drawn
    if beyond is not None:
        low, high = np.where(beyond, -np.inf, drawn), np.where(beyond, np.inf, drawn)
    return Share(
        value=value,
        low=float(np.percentile(low, _ENDS[0])),
        high=float(np.percentile(high, _ENDS[1])),
        examples=len(clusters),
        clusters=len(set(clusters)),
    )


def clustered(shown: Sequence[Sequence[str]]) -> list[str]:
    """Per example its cluster: examples that show one thing in common, however many lie between.

    Args:
        shown: Per example the names of what it shows; those with none are clusters of their own.
    """
    root: dict[str, str] = {}

    def of(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for names in shown:
        for name in names[1:]:
            root[of(name)] = of(names[0])
    return [f"shows {of(names[0])}" if names else f"alone {i}" for i, names in enumerate(shown)]
