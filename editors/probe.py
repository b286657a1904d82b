"""One tower under one delta: what changes where, read through the path that requests take."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from editors.delta import Delta, Factors
from editors.fact import Fact, Phrasing
from editors.fitting import contexts
from editors.joint import Named
from editors.moment import WARN_BELOW
from editors.neighbours import (
    PhraseBank,
    keys_at,
    nearest,
    place,
    says_subject,
    spoken,
)
from editors.pictures import embed_pictures
from editors.report import SAME, Group, Neighbour, Report, Thresholds, held, of_others
from editors.suffix import embed_clean
from editors.templates import Phrasebook
from models.hosted import HostedModel
from models.patch import LowRank, Patch
from models.text_tower import TextTower


class Probe:
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
            specificity=held(of_others(neighbours)),
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
