"""The change that an edit writes, found by Adam; edits of one block go down together.

Source: ReFACT section 3.3. The weights are read once for the rows of all edits; everything else is
each edit's own: its loss, Adam's moments (Adam is elementwise), its clamp, its end. So each comes
out as it would alone, up to the rounding of other matrix shapes.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.errors import AlreadyTrue, NoPull, NotFinite
from editors.fact import Fact
from editors.objective import Similarity, belief, decay, divergence, pull, similarities
from editors.progress import Progress
from editors.suffix import Suffix
from models.errors import Refusal


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How the loss goes down; see the method's settings of the same names."""

    steps: int
    rate: float
    decay: float
    stop: float
    clamp: float
    kl: float
    contrastive: bool
    similarity: Similarity
    scale: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Aim:
    """What one edit's change is to do.

    Attributes:
        start: (d,) the value before.
        offset: (rows, d) what each row gets beside the change: the prompts, then the captions.
        targets: (sets, t, e) a target and what to move away from, per softmax.
        pictures: (m, e) the negative images; none without the KL regulariser.
        captions: How many of the last rows are captions of the KL regulariser.
    """

    fact: Fact
    start: Float[Tensor, " d"]
    offset: Float[Tensor, "rows d"]
    targets: Float[Tensor, "sets t e"]
    pictures: Float[Tensor, "m e"] | None = None
    captions: int = 0


@dataclass(frozen=True, eq=False)
class Descended:
    """The change and how it was found, as JSON values."""

    change: Float[Tensor, " d"]
    notes: dict[str, Any]


@dataclass
class _Run:
    """One edit on its way down."""

    aim: Aim
    how: Descent
    curve: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    said: float = 0.0
    clamped: bool = False
    first: Float[Tensor, "c m"] | None = None
    end: Descended | Refusal | None = None

    def loss(
        self, embedded: Float[Tensor, "rows e"], change: Float[Tensor, " d"]
    ) -> Float[Tensor, ""]:
        """Pull, decay and KL of the edit's own rows; keeps what is told of them."""
        aim, how = self.aim, self.how
        prompts = embedded[: len(embedded) - aim.captions]
        scores = [similarities(prompts, t, how.similarity, how.scale) for t in aim.targets]
        loss = _pulled(scores, how.contrastive) + how.decay * decay(change, aim.start)
        if aim.pictures is not None:
            seen = similarities(embedded[len(prompts) :], aim.pictures, "cosine", how.scale)
            if self.first is None:
                self.first = seen.detach()
            moved = divergence(seen, self.first)
            self.held.append(float(moved.detach()))
            loss = loss + how.kl * moved
        self.said = sum(map(belief, scores)) / len(scores) if len(aim.targets[0]) > 1 else 0.0
        self.curve.append(float(loss.detach()))
        return loss

    @property
    def refused(self) -> Refusal | None:
        """Why this evaluation ends the edit without a change, if it does."""
        if not math.isfinite(self.curve[-1]):
            return NotFinite("The loss")
        if len(self.curve) == 1 and self.said > self.how.stop:
            return AlreadyTrue(self.aim.fact.prompt, self.aim.fact.target, self.said)
        return None

    def progress(self, number: int, edits: int) -> Progress:
        """What is told of this evaluation; of one edit among several, which."""
        return Progress(
            stage="fit",
            done=len(self.curve),
            total=self.how.steps,
            message=f"{number + 1} of {edits}, {self.aim.fact.prompt!r}" if edits > 1 else "",
            values={"loss": self.curve[-1], "belief": self.said},
        )

    def ended(self, change: Float[Tensor, " d"]) -> bool:
        """Whether this was the last evaluation; then `end` is set, to the change as it is."""
        believed = self.how.contrastive and self.said > self.how.stop
        if self.refused is not None:
            self.end = self.refused
        elif believed or len(self.curve) == self.how.steps:
            self.end = self._found(change.detach().clone())
        return self.end is not None

    def _found(self, change: Float[Tensor, " d"]) -> Descended | Refusal:
        norm, before = float(change.norm()), float(self.aim.start.norm())
        if norm < 0.05 * before and self.said <= self.how.stop:
            return NoPull(norm / before)
        notes = {
            "loss": self.curve,
            "belief": self.said,
            "evaluations": len(self.curve),
            "clamped": self.clamped,
        }
        if self.aim.pictures is not None:
            notes |= {"kl": self.held, "kl_captions": self.aim.captions}
        return Descended(change, notes)

    def clamp(self, change: Float[Tensor, " d"]) -> None:
        """At most `clamp` times the old value's norm, in place."""
        radius = self.how.clamp * float(self.aim.start.norm())
        if (norm := float(change.norm())) > radius:
            change *= radius / norm
            self.clamped = True


def descend(
    suffix: Suffix, aims: Sequence[Aim], how: Descent
) -> Generator[Progress, None, list[Descended | Refusal]]:
    """Adam on one change per edit from 0, all rows in one pass per step; see section 3.4.

    Args:
        suffix: The rows of all edits, one edit after the other.
        aims: What each is to do, in that order.
        how: The settings, which they share.

    Returns:
        Per edit its change, or why there is none; one that ends does not end the others.
    """
    runs = [_Run(aim, how) for aim in aims]
    sizes = [len(aim.offset) for aim in aims]
    change = torch.stack([torch.zeros_like(aim.start) for aim in aims]).requires_grad_()
    owner = torch.arange(len(aims)).repeat_interleave(torch.tensor(sizes)).to(change.device)
    offset = torch.cat([aim.offset for aim in aims])
    adam = torch.optim.Adam([change], lr=how.rate)
    live = list(range(len(aims)))
    while live:
        embedded = suffix.embed(change[owner] + offset).split([sizes[n] for n in live])
        losses: dict[int, Tensor] = {}
        for n, rows in zip(live, embedded, strict=True):
            loss = runs[n].loss(rows, change[n])
            if not runs[n].refused:
                yield runs[n].progress(n, len(runs))
            if not runs[n].ended(change[n]):
                losses[n] = loss
        if not losses:
            break
        # What has ended is not in this sum: a loss that is no number spoils no neighbour's step.
        adam.zero_grad(set_to_none=True)
        torch.stack([*losses.values()]).sum().backward()
        adam.step()
        for n in losses:
            runs[n].clamp(change[n].detach())
        if len(losses) < len(live):
            live = list(losses)
            stay = torch.isin(owner, torch.tensor(live, device=owner.device))
            suffix, owner, offset = suffix.only(stay), owner[stay], offset[stay]
    return [run.end for run in runs if run.end is not None]


def _pulled(scores: Sequence[Float[Tensor, "p t"]], contrastive: bool) -> Float[Tensor, ""]:
    """Summed over the sets where each has its own softmax, else their mean."""
    pulls = torch.stack([pull(s, contrastive) for s in scores])
    return pulls.sum() if contrastive else pulls.mean()
