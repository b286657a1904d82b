"""What a new version says of itself: measured on text, through the path that requests take.

Section 8 of the method's specification. Nothing here looks at a picture: text-side efficacy is not
a judged picture, and is never printed as one.
"""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.delta import Delta, Factors
from editors.errors import SubjectCut, SubjectMerges
from editors.fact import Fact, Phrasing, last_subject_token
from editors.joint import Named
from editors.methods.refact import contexts
from editors.progress import Progress
from editors.suffix import embed_clean
from editors.templates import Phrasebook, phrasebook_of
from models.errors import SubjectNotFound
from models.hosted import HostedModel
from models.text_tower import TextTower


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a version must reach to take an alias without `force`."""

    efficacy: float = 0.5
    moved: float = 0.5
    generality: float = 0.7
    reach: float = 0.5
    specificity: float = 0.95
    leak: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Report:
    """Text-side measures of one delta in one tower; see the specification for the definitions.

    Attributes:
        efficacy: P(target) on the edit prompt against its old meaning and neutral captions.
        nearest: Whether the target is the nearest of these.
        moved: How much of the way to the target's sentences the fitted contexts went.
        generality: Share of held-out contexts and phrasings nearer to the target than to before.
        reach: Median share of the value that arrives in held-out contexts.
        specificity: Share of neighbours that neither lean to the target nor move much.
        leak: Root mean square change over the corpus, relative to the layer's own output.
        drift: Mean relative change of the states of neutral captions.
        conflicts: Live edits whose keys overlap by |rho| >= 0.5, with rho.
    """

    efficacy: float
    nearest: bool
    moved: float
    generality: float
    reach: float
    specificity: float
    leak: float
    drift: float
    neighbours: dict[str, float]
    conflicts: dict[str, float] = field(default_factory=dict)
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def failed(self) -> tuple[str, ...]:
        """The measures that miss their thresholds."""
        t = self.thresholds
        checks = {
            "efficacy": self.efficacy >= t.efficacy and self.nearest,
            "moved": self.moved >= t.moved,
            "generality": self.generality >= t.generality,
            "reach": self.reach >= t.reach,
            "specificity": self.specificity >= t.specificity,
            "leak": self.leak <= t.leak,
        }
        return tuple(name for name, good in checks.items() if not good)

    @property
    def passed(self) -> bool:
        """Whether the version may take an alias without `force`."""
        return not self.failed

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "passed": self.passed, "failed": list(self.failed)}


def measure(
    hosted: HostedModel,
    fact: Fact,
    delta: Delta,
    *,
    others: Sequence[Named] = (),
    thresholds: Thresholds | None = None,
    book: Phrasebook | None = None,
) -> Generator[Progress, None, Report]:
    """Measure a delta; for two encoders, the worse value of each measure.

    `others` are the live edits of the model: their keys are compared with the new ones.
    """
    book, limits = book or phrasebook_of(hosted), thresholds or Thresholds()
    reports = []
    for number, tower in enumerate(hosted.text_towers.values()):
        yield Progress(stage="report", done=number, total=len(hosted.text_towers))
        site = next(s for s in delta.factors if s.startswith(f"{tower.attribute}."))
        reports.append(_Probe(hosted, tower, fact, delta, site, book).report(others, limits))
    yield Progress(stage="report", done=len(reports), total=len(reports))
    return _worst(reports)


def _worst(reports: Sequence[Report]) -> Report:
    first, *rest = reports
    if not rest:
        return first
    good = ("efficacy", "moved", "generality", "reach", "specificity", "nearest")
    low = {n: min(getattr(r, n) for r in reports) for n in good}
    high = {n: max(getattr(r, n) for r in reports) for n in ("leak", "drift")}
    conflicts = {k: v for r in reports for k, v in r.conflicts.items()}
    return Report(
        **low, **high, neighbours=first.neighbours, conflicts=conflicts, thresholds=first.thresholds
    )


class _Probe:
    """One tower, one delta: what changes where."""

    def __init__(
        self,
        hosted: HostedModel,
        tower: TextTower,
        fact: Fact,
        delta: Delta,
        site: str,
        book: Phrasebook,
    ) -> None:
        self.hosted, self.tower, self.fact, self.book = hosted, tower, fact, book
        self.delta, self.site = delta, site
        self.factors: Factors = delta.factors[site]
        self.patch = delta.patch()

    def report(self, others: Sequence[Named], limits: Thresholds) -> Report:
        """Every measure."""
        fitted, held_out = self._fitted(), self._held_out()
        efficacy, nearest = self._efficacy()
        neighbours = self._neighbours()
        return Report(
            efficacy=efficacy,
            nearest=nearest,
            moved=float(self._moved(fitted)[0].mean()),
            generality=float(self._moved(held_out)[1].float().mean()) if held_out else 1.0,
            reach=self._reach(held_out),
            specificity=sum(v < 1.0 for v in neighbours.values()) / max(1, len(neighbours)),
            leak=self._leak(),
            drift=self._drift(),
            neighbours=neighbours,
            conflicts=self._conflicts(others),
            thresholds=limits,
        )

    def _fitted(self) -> list[Phrasing]:
        return contexts(self.tower, self.fact.spoken, self.book)

    def _held_out(self) -> list[Phrasing]:
        said = self.fact.spoken
        forms = [
            Phrasing(prompt=t.format(said.prompt), subject=said.subject) for t in self.book.held_out
        ]
        return [p for p in (*forms, *self.fact.phrasings) if self._fits(p)]

    def _fits(self, phrasing: Phrasing) -> bool:
        try:
            last_subject_token(self.tower, phrasing)
        except (SubjectCut, SubjectMerges, SubjectNotFound):
            return False
        return True

    def _both(self, texts: Sequence[str]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Embeddings before and after, through the real LowRank path."""
        before = embed_clean(self.hosted, self.tower, texts)
        with self.hosted.planned([self.patch] * len(texts)):
            after = embed_clean(self.hosted, self.tower, texts)
        return before, after

    def _efficacy(self) -> tuple[float, bool]:
        fact = self.fact
        said = [fact.prompt, fact.target, *([fact.source] if fact.source else [])]
        texts = list(
            dict.fromkeys([fact.target, fact.prompt, *said[2:], *self.book.captions(said)])
        )
        candidates = embed_clean(self.hosted, self.tower, texts)
        _, after = self._both([fact.prompt])
        near = -torch.cdist(after, candidates)[0]
        return float(torch.softmax(near, -1)[0]), int(near.argmax()) == 0

    def _moved(self, phrasings: Sequence[Phrasing]) -> tuple[Tensor, Tensor]:
        """Per context: 1 - d(after, goal) / d(before, goal), and d(after, goal) < d(after, before).

        The goal is the same context, unedited, with the target in the subject's place.
        """
        before, after = self._both([p.prompt for p in phrasings])
        goal = embed_clean(
            self.hosted, self.tower, [_replaced(p, self.fact.target) for p in phrasings]
        )
        left = torch.linalg.vector_norm(after - goal, dim=-1)
        away = torch.linalg.vector_norm(before - goal, dim=-1).clamp_min(1e-9)
        return 1 - left / away, left < torch.linalg.vector_norm(after - before, dim=-1)

    def _reach(self, phrasings: Sequence[Phrasing]) -> float:
        """Median over held-out contexts of |dW k(x)| along the value, 1 at the stored keys."""
        if not phrasings:
            return 1.0
        keys = self._keys(phrasings)
        written = keys @ self.factors.right.double().mT @ self.factors.left.double().mT
        value = self.factors.values.double().mean(0)
        shares = written @ value / (value @ value)
        return float(shares.median())

    def _keys(self, phrasings: Sequence[Phrasing]) -> Float[Tensor, "n inner"]:
        tokens = self.tower.tokens([p.prompt for p in phrasings])
        at = torch.tensor([last_subject_token(self.tower, p) for p in phrasings])
        with torch.no_grad(), self.hosted.captured(self.site) as seen:
            self.tower.module(input_ids=tokens.ids.to(self.hosted.device))
        return _one(seen[self.site])[torch.arange(len(at)), at].double().cpu()

    def _neighbours(self) -> dict[str, float]:
        """Per neighbour: below 1 it neither leans to the target nor moves by more than a tenth.

        Neighbours are the request's, the source, and neutral captions.
        """
        fact = self.fact
        said = [fact.prompt, fact.target]
        source = [fact.source] if fact.source else []
        asked = [*fact.neighbours, *source, *self.book.captions(said, 40)]
        texts = list(dict.fromkeys(asked))
        if not texts:
            return {}
        before, after = self._both([*texts, fact.prompt])
        goal = embed_clean(self.hosted, self.tower, [fact.target])
        change = torch.linalg.vector_norm(after - before, dim=-1)
        lean = change[:-1] / torch.linalg.vector_norm(after[:-1] - goal, dim=-1).clamp_min(1e-9)
        moved = change[:-1] / change[-1].clamp_min(1e-9) / 0.1
        return {t: round(float(max(a, b)), 4) for t, a, b in zip(texts, lean, moved, strict=True)}

    def _leak(self) -> float:
        """||d|| / sqrt(G) over the root mean square of the layer's own change, in closed form.

        For one key the mean square of dW k over the corpus is ||d||^2 / (a . k).
        """
        k, a, d = (
            t.double() for t in (self.factors.keys, self.factors.solved, self.factors.values)
        )
        if not len(k):
            return 0.0
        inverse = torch.linalg.pinv(a @ k.mT)
        energy = float(((inverse @ d) * d).sum().clamp_min(0))
        texts = self.book.captions([], 40)
        with torch.no_grad(), self.hosted.captured(f"{self.site}:out") as seen:
            self.tower.module(input_ids=self.tower.tokens(texts).ids.to(self.hosted.device))
        own = float(_one(seen[f"{self.site}:out"]).double().square().sum(-1).mean())
        return (energy / own) ** 0.5

    def _drift(self) -> float:
        texts = ["", *self.book.captions([], 40)]
        ids = self.tower.tokens(texts, pad="max").ids.to(self.hosted.device)
        last = f"{self.tower.tower}.block.{len(self.tower.blocks) - 1}"
        with torch.no_grad(), self.hosted.captured(last) as seen:
            self.tower.module(input_ids=ids)
        with (
            torch.no_grad(),
            self.hosted.captured(last) as changed,
            self.hosted.planned([self.patch] * len(texts)),
        ):
            self.tower.module(input_ids=ids)
        before, after = _one(seen[last]).double(), _one(changed[last]).double()
        return float((after - before).norm() / before.norm())

    def _conflicts(self, others: Sequence[Named]) -> dict[str, float]:
        found = {}
        mine = self.factors
        for other in others:
            theirs = other.delta.factors.get(self.site)
            if theirs is None or not len(theirs.keys) or not len(mine.keys):
                continue
            cross = mine.solved.double() @ theirs.keys.double().mT
            own = (mine.solved.double() * mine.keys.double()).sum(-1)
            its = (theirs.solved.double() * theirs.keys.double()).sum(-1)
            rho = float(
                (cross / (own[:, None] * its[None, :]).clamp_min(1e-300).sqrt()).abs().max()
            )
            if rho >= 0.5:
                found[other.name] = round(rho, 4)
        return found


def _replaced(phrasing: Phrasing, target: str) -> str:
    at = phrasing.prompt.lower().index(phrasing.subject.lower())
    return phrasing.prompt[:at] + target + phrasing.prompt[at + len(phrasing.subject) :]


def _one(seen: Any) -> Tensor:
    return seen[0] if isinstance(seen, list) else seen
