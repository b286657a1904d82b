"""What a new version says of itself: measured on text, through the path that requests take.

Section 8 of the method's specification. Nothing here looks at a picture: text-side efficacy is not
a judged picture, and is never printed as one.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from editors.delta import Delta, Factors
from editors.fact import Fact, Phrasing
from editors.fitting import contexts, in_space
from editors.joint import Named
from editors.moment import WARN_BELOW, Corpus
from editors.neighbours import (
    PhraseBank,
    PhraseBanks,
    keys_at,
    nearest,
    place,
    says_subject,
    spoken,
)
from editors.pictures import embed_pictures
from editors.progress import Progress
from editors.suffix import embed_clean
from editors.templates import Phrasebook, phrasebook_of
from models.hosted import HostedModel
from models.patch import LowRank, Patch
from models.text_tower import TextTower


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What a version must reach to take an alias without `force`."""

    efficacy: float = 0.5
    moved: float = 0.5
    generality: float = 0.7
    reach: float = 0.5
    specificity: float = 0.95
    stray: float = 0.1
    """A neighbour may move by so much of the edit prompt's own change."""
    leak: float = 0.15


Group = Literal["asked", "near", "same", "source", "target", "neutral"]
SAME = 0.5
"""From this |rho| on a phrase says the same subject (section 6.2): it is shown and not judged."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A sentence that was to stay as it is, and how nearly it did.

    Attributes:
        group: The request's (`asked`), by its key (`near`; `same` where the key says the same
            subject), the fact's own `source` or `target`, or of the fixed set (`neutral`).
        score: The larger of its change over what it may move (`stray`, of the edit prompt's own),
            and over its distance to the target; for the target itself only the first. It holds up
            to 1.
        rho: For `near` and `same`: how much its key overlaps with the edit's.
    """

    text: str
    group: Group
    score: float
    held: bool
    rho: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Text-side measures of one delta in one tower; see the specification for the definitions.

    Attributes:
        efficacy: P(target) on the edit prompt against its old meaning and neutral captions.
        nearest: Whether the target is the nearest of these.
        moved: How much of the way to the target's sentences the fitted contexts went.
        generality: Share of held-out contexts and phrasings nearer to the target than to before.
        reach: Median share of the value that arrives in held-out contexts.
        specificity: Share of neighbours that neither lean to the target nor move much; those that
            say the same subject are not among them.
        neighbours: All that were measured, the worst first.
        leak: Root mean square change over the corpus, relative to the layer's own output.
        drift: Mean relative change of the states of neutral captions.
        conflicts: Live edits whose keys overlap by |rho| >= 0.5, with rho.
        cond: Condition number of the second moment that the fit solved with, the larger of two
            encoders'; None where the delta does not tell.
        templates: Whose sentences were fitted: `own`, or those of a user's `file`.
        warnings: What a reader of the numbers should know.
    """

    efficacy: float
    nearest: bool
    moved: float
    generality: float
    reach: float
    specificity: float
    leak: float
    drift: float
    neighbours: tuple[Neighbour, ...]
    templates: Literal["own", "file"] = "own"
    warnings: tuple[str, ...] = ()
    conflicts: dict[str, float] = field(default_factory=dict)
    cond: float | None = None
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

    @property
    def by_group(self) -> dict[str, float]:
        """Specificity of each group of neighbours alone."""
        groups = sorted({n.group for n in self.neighbours})
        return {g: _held([n for n in self.neighbours if n.group == g]) for g in groups}

    @property
    def worst(self) -> dict[str, float]:
        """The five neighbours that changed most, with their scores."""
        return {n.text: n.score for n in _others(self.neighbours)[:5]}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        told = {"passed": self.passed, "failed": list(self.failed)}
        return {**asdict(self), **told, "by_group": self.by_group, "worst": self.worst}


def measure(  # noqa: PLR0913 - every part of the surroundings is stated by name
    hosted: HostedModel,
    fact: Fact,
    delta: Delta,
    *,
    banks: PhraseBanks,
    corpus: Corpus,
    others: Sequence[Named] = (),
    thresholds: Thresholds | None = None,
    book: Phrasebook | None = None,
) -> Generator[Progress, None, Report]:
    """Measure a delta; for two encoders, the worse value of each measure.

    Args:
        hosted: The model that the delta was fitted on.
        fact: What it was fitted to.
        delta: The change.
        banks: Phrases of corpora with their keys, shared by all measurements of a model.
        corpus: Of the second moment; its phrases are neighbours.
        others: The live edits of the model: their keys are compared, their subjects neighbours.
        thresholds: What decides whether it passed.
        book: The model's sentences; default: as `phrasebook_of` finds them.
    """
    limits, mode = thresholds or Thresholds(), str(delta.header.get("mode", ""))
    whole = book or phrasebook_of(hosted)
    space = str(delta.header.get("settings", {}).get("space", "projected"))
    probes = []
    for tower in hosted.text_towers.values():
        site = next(s for s in delta.factors if s.startswith(f"{tower.attribute}."))
        bank = yield from _bank(hosted, tower, site, corpus, banks, others)
        seen = in_space(tower, space)
        probes.append(_Probe(hosted, seen, fact, delta, site, whole.of(mode), bank))
    reports = []
    for number, probe in enumerate(probes):
        yield Progress(stage="report", done=number, total=len(probes))
        reports.append(probe.report(others, limits, whole.origin(mode)))
    yield Progress(stage="report", done=len(reports), total=len(reports))
    return _worst(reports)


def _bank(
    hosted: HostedModel,
    tower: TextTower,
    site: str,
    corpus: Corpus,
    banks: PhraseBanks,
    others: Sequence[Named],
) -> Generator[Progress, None, PhraseBank | None]:
    """The phrases around the site; None where no fact is written (an editor of another layer)."""
    blocks = [b for b in range(tower.n_blocks) if tower.fc2_site(b) == site]
    if not blocks:
        return None
    return (yield from banks.of(hosted, tower, blocks[0], corpus, _registered(others)))


def _registered(others: Sequence[Named]) -> list[Phrasing]:
    """The prompts of live edits; an imported adapter has none."""
    facts = [o.delta.header["fact"] for o in others if o.delta.header.get("fact")]
    return [Phrasing(prompt=f["prompt"], subject=f["subject"] or f["prompt"]) for f in facts]


def _worst(reports: Sequence[Report]) -> Report:
    first, *rest = reports
    if not rest:
        return first
    good = ("efficacy", "moved", "generality", "reach", "specificity", "nearest")
    low = {n: min(getattr(r, n) for r in reports) for n in good}
    high = {n: max(getattr(r, n) for r in reports) for n in ("leak", "drift")}
    kept: dict[str, Neighbour] = {}
    for n in sorted((n for r in reports for n in r.neighbours), key=lambda n: -n.score):
        kept.setdefault(spoken(n.text), n)
    return Report(
        **low,
        **high,
        neighbours=tuple(kept.values()),
        templates=first.templates,
        warnings=tuple(dict.fromkeys(w for r in reports for w in r.warnings)),
        conflicts={k: v for r in reports for k, v in r.conflicts.items()},
        cond=max((r.cond for r in reports if r.cond is not None), default=None),
        thresholds=first.thresholds,
    )


def _held(neighbours: Sequence[Neighbour]) -> float:
    return sum(n.held for n in neighbours) / max(1, len(neighbours))


def _others(neighbours: Sequence[Neighbour]) -> list[Neighbour]:
    """Those that say another subject."""
    return [n for n in neighbours if n.group != "same"]


class _Probe:
    """One tower, one delta: what changes where."""

    def __init__(  # noqa: PLR0913, PLR0917 - as `measure`
        self,
        hosted: HostedModel,
        tower: TextTower,
        fact: Fact,
        delta: Delta,
        site: str,
        book: Phrasebook,
        bank: PhraseBank | None,
    ) -> None:
        self.hosted, self.tower, self.fact, self.book = hosted, tower, fact, book
        self.bank = bank
        self.delta, self.site = delta, site
        self.factors: Factors = delta.factors[site]
        # This tower's part alone: another encoder is not run, and what is planned must happen.
        f = self.factors
        self.patch = Patch((LowRank(site=site, left=f.left, right=f.right),))

    def report(
        self, others: Sequence[Named], limits: Thresholds, templates: Literal["own", "file"]
    ) -> Report:
        """Every measure."""
        fitted, held_out = self._fitted(), self._held_out()
        efficacy, nearest = self._efficacy()
        neighbours = self._neighbours(limits.stray)
        return Report(
            efficacy=efficacy,
            nearest=nearest,
            moved=float(self._moved(fitted)[0].mean()),
            generality=float(self._moved(held_out)[1].float().mean()) if held_out else 1.0,
            reach=self._reach(held_out),
            specificity=_held(_others(neighbours)),
            leak=self._leak(),
            drift=self._drift(),
            neighbours=neighbours,
            templates=templates,
            warnings=self._warnings(),
            conflicts=self._conflicts(others),
            cond=self._moment().get("cond"),
            thresholds=limits,
        )

    def _fitted(self) -> list[Phrasing]:
        return contexts(self.tower, self.fact.spoken, self.book)

    def _held_out(self) -> list[Phrasing]:
        said = self.fact.spoken
        forms = [
            Phrasing(prompt=t.format(said.prompt), subject=said.subject) for t in self.book.held_out
        ]
        return [p for p in (*forms, *self.fact.phrasings) if place(self.tower, p) is not None]

    def _moment(self) -> Mapping[str, Any]:
        return self.delta.header.get("fit", {}).get(self.tower.attribute, {}).get("moment", {})

    def _warnings(self) -> tuple[str, ...]:
        tokens = self._moment().get("per_dimension", WARN_BELOW)
        if tokens >= WARN_BELOW:
            return ()
        told = (
            f"{tokens:.0f} tokens per dimension; below {WARN_BELOW} the sample shows in the edit."
        )
        return (f"The second moment of {self.tower.attribute} has {told}",)

    def _both(self, texts: Sequence[str]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Embeddings before and after, through the real LowRank path."""
        before = embed_clean(self.hosted, self.tower, texts)
        with self.hosted.planned([self.patch] * len(texts)):
            after = embed_clean(self.hosted, self.tower, texts)
        return before, after

    def _goals(self) -> Float[Tensor, "n d"]:
        """What was aimed at: the target's text, or its pictures where there is no text."""
        if self.fact.target.strip():
            return embed_clean(self.hosted, self.tower, [self.fact.target])
        return embed_pictures(self.hosted, self.tower, self.fact.target_images)

    def _efficacy(self) -> tuple[float, bool]:
        """P(target) under the fit's own softmax, and whether nothing there is nearer.

        Each picture has its own softmax, against the edit prompt as it was.
        """
        fact, goals = self.fact, self._goals()
        said = [fact.prompt, fact.target, *([fact.source] if fact.source else [])]
        texts = [fact.prompt, *said[2:]]
        if fact.target.strip():
            texts += self.book.captions(said)
        candidates = embed_clean(self.hosted, self.tower, list(dict.fromkeys(texts)))
        _, after = self._both([fact.prompt])
        away = -torch.cdist(after, candidates)
        near = torch.cat([-torch.cdist(after, goals).mT, away.expand(len(goals), -1)], dim=1)
        return float(torch.softmax(near, -1)[:, 0].mean()), bool((near.argmax(1) == 0).all())

    def _moved(self, phrasings: Sequence[Phrasing]) -> tuple[Tensor, Tensor]:
        """Per context: 1 - d(after, goal) / d(before, goal), and d(after, goal) < d(after, before).

        The goal is the same context, unedited, with the target in the subject's place; or the
        middle of its pictures.
        """
        before, after = self._both([p.prompt for p in phrasings])
        goal = self._goals().mean(0, keepdim=True)
        if self.fact.target.strip():
            said = [_replaced(p, self.fact.target) for p in phrasings]
            goal = embed_clean(self.hosted, self.tower, said)
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
        placed = [(p, at) for p in phrasings if (at := place(self.tower, p)) is not None]
        return keys_at(self.hosted, self.tower, self.site, placed)

    def _surroundings(self) -> dict[str, tuple[Group, float | None]]:
        """Each neighbour once, under the first group that names it, with its rho.

        A source that contains the subject is the subject: it is to change.
        """
        fact = self.fact
        source = [fact.source] if fact.source and not says_subject(fact.source, fact) else []
        target = [fact.target] if fact.target.strip() else []
        neutral = ["", *self.book.captions([fact.prompt, fact.target], 40)]
        measured = [*fact.neighbours, *source, *target]
        near: dict[str, float] = {}
        if self.bank is not None:
            near = nearest(self.bank, self.factors, fact, without=measured)
        groups: list[tuple[Group, dict[str, float | None]]] = [
            ("target", dict.fromkeys(target)),
            ("asked", dict.fromkeys(fact.neighbours)),
            ("source", dict.fromkeys(source)),
            ("near", {text: rho for text, rho in near.items() if rho < SAME}),
            ("same", {text: rho for text, rho in near.items() if rho >= SAME}),
            ("neutral", dict.fromkeys(neutral)),
        ]
        found: dict[str, tuple[Group, float | None]] = {}
        known: set[str] = set()
        for group, texts in groups:
            for text, rho in texts.items():
                if spoken(text) not in known:
                    found[text] = (group, rho)
                    known.add(spoken(text))
        return found

    def _neighbours(self, stray: float) -> tuple[Neighbour, ...]:
        """Every neighbour, the worst first: its change over what it may be."""
        around = self._surroundings()
        before, after = self._both([*around, self.fact.prompt])
        change = torch.linalg.vector_norm(after - before, dim=-1)
        moved = change[:-1] / change[-1].clamp_min(1e-9) / stray
        away = torch.cdist(after[:-1], self._goals()).amin(1)
        lean = change[:-1] / away.clamp_min(1e-9)
        found = [
            _neighbour(text, group, rho, float(m), float(a))
            for (text, (group, rho)), m, a in zip(around.items(), moved, lean, strict=True)
        ]
        return tuple(sorted(found, key=lambda n: -n.score))

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
            if rho >= SAME:
                found[other.name] = round(rho, 4)
        return found


def _neighbour(text: str, group: Group, rho: float | None, moved: float, lean: float) -> Neighbour:
    leans = group != "target" and lean >= 1
    return Neighbour(
        text=text,
        group=group,
        score=round(moved if group == "target" else max(moved, lean), 4),
        held=moved <= 1 and not leans,
        rho=None if rho is None else round(rho, 4),
    )


def _replaced(phrasing: Phrasing, target: str) -> str:
    at = phrasing.prompt.lower().index(phrasing.subject.lower())
    return phrasing.prompt[:at] + target + phrasing.prompt[at + len(phrasing.subject) :]


def _one(seen: Any) -> Tensor:
    return seen[0] if isinstance(seen, list) else seen
