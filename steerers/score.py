"""What an output score is: its settings, its record, the formula on a row of logits.

S_out(f) = (1 - #{v : z_v > z*} / V) * exp(z* - logsumexp(z)), z = the logits of the model on the
steered token, z* = the largest of them over K(f), the feature's k lens tokens (Arad et al. 2025,
as their code computes it). Ranks count strictly larger logits, so that ties cannot hurt.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le, MaxLen, MinLen
from jaxtyping import Float, Int
from torch import Tensor

VERSION = 1
"""Of the code: part of every key, so that a mended formula does not meet old numbers."""
USABLE, STRONG = 0.01, 0.1
"""Output scores from which a feature is called usable, and strong (sections 4 and 5 of the paper).

They were found on Gemma-2; p depends on the vocabulary and on A, so that other models need their
own."""


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How output scores are measured; the defaults are those of the paper's code.

    Attributes:
        prompt: The neutral prompt; the tokenizer's special tokens are added, no chat template.
        factor: s; the token is moved by s * A * d_f.
        tokens: k, how many lens tokens stand for the feature.
        subtract_prior: Subtract the same formula on the unsteered logits; can be negative.
        reconstruct: The SAE's output replaces the stream at every position of the prompt.
    """

    prompt: Annotated[str, MinLen(1), MaxLen(1000)] = "From my experience,"
    factor: float = 10.0
    tokens: Annotated[int, Ge(1), Le(1000)] = 20
    subtract_prior: bool = False
    reconstruct: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the settings and of this code's version."""
        told = json.dumps({**asdict(self), "version": VERSION}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


REFERENCE = ScoreSettings()
PAPER = ScoreSettings(prompt="In my experience,", subtract_prior=True, reconstruct=True)
VARIANTS: Mapping[str, ScoreSettings] = {"reference": REFERENCE, "paper": PAPER}
"""Named settings: what the paper's code does, and what the paper says."""


@dataclass(frozen=True, kw_only=True)
class Neutral:
    """What the neutral prompt's last token says, unsteered: once per SAE.

    Attributes:
        a_max: A, the largest code of that token over all features.
        stream_norm: Of the token at the SAE's site.
        p_max: Probability of the likeliest next token; None if the logits were not finite.
    """

    a_max: float
    stream_norm: float
    p_max: float | None


@dataclass(frozen=True, kw_only=True)
class Score:
    """One feature's record.

    Attributes:
        output_score: S_out; None if its logits were not finite.
        peak: p*, the probability of the likeliest lens token under steering.
        rank: How many tokens were strictly likelier.
        p_max_before, p_max_after: Probability of the likeliest token, unsteered and steered.
        a_max: A; at 0 nothing is steered and the score is the unsteered value.
        tokens: K(f), largest first.
        reason: Why there is no score; empty if there is one.
    """

    feature: int
    output_score: float | None
    peak: float | None
    rank: int | None
    p_max_before: float | None
    p_max_after: float | None
    a_max: float
    tokens: tuple[int, ...]
    reason: str = ""

    @property
    def delta_confidence(self) -> float | None:
        """Delta C with k = 1, log p_max(before) - log p_max(after) (arXiv 2510.03659)."""
        if not self.p_max_before or not self.p_max_after:
            return None
        return math.log(self.p_max_before) - math.log(self.p_max_after)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "tokens": list(self.tokens)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> "Score":
        """The record that `as_dict` gave."""
        return cls(**{**told, "tokens": tuple(told["tokens"])})


@dataclass(frozen=True, kw_only=True, eq=False)
class RowStatistics:
    """What is kept of rows of logits.

    Attributes:
        best: z*, the largest logit among the lens tokens.
        above: How many logits are strictly larger.
        log_total: logsumexp over the vocabulary.
        largest: The largest logit.
        finite: Whether all logits are.
    """

    best: Float[Tensor, " rows"]
    above: Int[Tensor, " rows"]
    log_total: Float[Tensor, " rows"]
    largest: Float[Tensor, " rows"]
    finite: Tensor
    vocabulary: int

    @property
    def peak(self) -> Float[Tensor, " rows"]:
        """p*, in float64."""
        return (self.best.double() - self.log_total.double()).exp().clamp(max=1.0)

    @property
    def p_max(self) -> Float[Tensor, " rows"]:
        """Of the likeliest token, in float64."""
        return (self.largest.double() - self.log_total.double()).exp().clamp(max=1.0)

    @property
    def output(self) -> Float[Tensor, " rows"]:
        """S_out, in float64."""
        return (1 - self.above.double() / self.vocabulary) * self.peak

    @staticmethod
    def joined(parts: "list[RowStatistics]") -> "RowStatistics":
        """The rows one below the other."""
        names = ("best", "above", "log_total", "largest", "finite")
        stacked: dict[str, Any] = {n: torch.cat([getattr(p, n) for p in parts]) for n in names}
        return RowStatistics(**stacked, vocabulary=parts[0].vocabulary)


def statistics(
    logits: Float[Tensor, "rows vocab"], tokens: Int[Tensor, "rows k"], cap: float | None = None
) -> RowStatistics:
    """Of final logits and each row's lens tokens.

    Args:
        logits: In float32 or more.
        tokens: Of each row.
        cap: What bounds the logits by cap * tanh(logit / cap), if it has not been done. The order
            is the same before it, so that ranks are counted there.
    """
    best, largest = logits.gather(1, tokens).amax(1), logits.amax(1)
    finite = torch.isfinite(largest) & torch.isfinite(logits.amin(1))
    room = torch.empty_like(logits)  # one for all that follows: fresh memory costs as much again
    # Written as numbers, since booleans are summed at three times the cost; exact up to 2^24.
    above = torch.gt(logits, best[:, None], out=room).sum(1).long()
    if cap is not None:
        logits, best, largest = capped(logits, cap, room), capped(best, cap), capped(largest, cap)
    # Powers of 2, since a vendor's `exp` may take ten times as long.
    away = torch.sub(logits, largest[:, None], out=room).mul_(1 / math.log(2)).exp2_()
    return RowStatistics(
        best=best,
        above=above,
        log_total=largest + away.sum(1).log(),
        largest=largest,
        finite=finite,
        vocabulary=logits.shape[1],
    )


def capped(
    logits: Float[Tensor, "*rows"], cap: float, room: Tensor | None = None
) -> Float[Tensor, "*rows"]:
    """The soft-cap, cap * tanh(x / cap), by the logistic function: a sixth of the time."""
    return torch.mul(logits, 2 / cap, out=room).sigmoid_().mul_(2 * cap).sub_(cap)
