"""Did the fact take: efficacy, generality and specificity on judged pictures.

The protocol of ReFACT (Arad et al. 2024, section 5): the edited model draws the edit prompt,
prompts that the edit should reach and prompts that it must not, several seeds each; a judge says
whether each picture shows the right answer. Beside it stand two arms of the same prompts: `base`,
the model without the edit, and `oracle`, the unedited model told the new fact in words.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic

from editors.progress import Progress
from evaluation.errors import FitRefused, NothingToJudge
from evaluation.judge import Judge, Picture, Verdict, cake_bar
from evaluation.protocol import (
    PARTS,
    Arm,
    Case,
    Done,
    Estimate,
    Journal,
    Outcome,
    Part,
    Probe,
    Score,
    estimate,
    pixels_digest,
)
from models.errors import Refusal


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture that is wanted; `edit` is a name that the fit gave, None the unedited model."""

    prompt: str
    seed: int
    edit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """An edit that can be drawn with: its name on the drawing side and what the fit reported."""

    edit: str
    digest: str
    report: Mapping[str, object]


Draw = Callable[[Sequence[Drawing]], Iterable[Picture]]
"""Pictures in the order of the wishes, each as soon as it is there."""
Fit = Callable[[Case], Generator[Progress, None, Fitted]]


@dataclass(frozen=True, kw_only=True)
class FactSettings:
    """How a run is made; part of the journal's header."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    kept_seeds: int = 1
    """Pictures of so many seeds are stored for the contact sheet."""
    cake_seeds: int = 0
    """Pictures of the unedited model per answer that set CAKE's bar (the paper: 50); 0: not asked.

    The judge must give similarities."""
    unedited_bytes: int = 256 * 2**20
    """Pictures of the unedited model that are kept in memory, as cases share them."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """One row of a table: shares of pictures with the right answer."""

    parts: Mapping[Part, Estimate]
    generality_75: float | None = None
    """Share of the generality pictures with P(right) > 0.75; `_90` likewise."""
    generality_90: float | None = None
    cake: Mapping[Part, float] = field(default_factory=dict)
    """By CAKE's criterion: shares of pictures as like the right answer as its bar asks."""

    @property
    def harmonic(self) -> float | None:
        """The harmonic mean of all three; None while one was not measured."""
        values = [self.parts[p].value for p in PARTS if p in self.parts]
        if len(values) < len(PARTS):
            return None
        return 0.0 if min(values) <= 0 else len(values) / sum(1 / v for v in values)

    @property
    def f1_paper(self) -> float | None:
        """What the paper prints as F1: a geometric mean that leaves efficacy out."""
        if "generality" not in self.parts or "specificity" not in self.parts:
            return None
        return (self.parts["generality"].value * self.parts["specificity"].value) ** 0.5

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        told: dict[str, object] = {part: asdict(e) for part, e in self.parts.items()}
        told["cake"] = dict(self.cake)
        for name in ("harmonic", "f1_paper", "generality_75", "generality_90"):
            told[name] = getattr(self, name)
        return told


@dataclass(frozen=True, kw_only=True)
class FactReport:
    """What a run found.

    Attributes:
        header: What the run was made with: settings, model, judge, versions.
        groups: Per group of cases (`all`, `role`, ...) and arm, the measures.
        tags: Per tag of a probe (`paraphrase`, `scene`, ...), the edited arm's share.
        validity: Share of cases and seeds in which the unedited model draws the old answer at the
            edit prompt and the new one when told so: elsewhere the case cannot show an edit.
        refused: Cases whose fit was refused, with the refusal; they count as drawn unedited.
        fit_seconds: Mean time of a fit.
        done: The cases with every score.
    """

    header: Mapping[str, object]
    groups: Mapping[str, Mapping[Arm, Measures]]
    tags: Mapping[str, Estimate]
    validity: float
    refused: Mapping[str, str]
    fit_seconds: float
    done: tuple[Done, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain data, without the single scores (they are in the journal)."""
        return {
            "header": dict(self.header),
            "cases": len(self.done),
            "groups": {
                group: {arm: m.as_dict() for arm, m in arms.items()}
                for group, arms in self.groups.items()
            },
            "tags": {tag: asdict(e) for tag, e in self.tags.items()},
            "validity": self.validity,
            "refused": dict(self.refused),
            "fit_seconds": self.fit_seconds,
        }


def evaluate_facts(
    cases: Sequence[Case],
    draw: Draw,
    fit: Fit,
    judge: Judge,
    journal: Journal,
    settings: FactSettings,
) -> Generator[Progress, None, FactReport]:
    """Fit every case, draw it, judge it; cases that the journal already holds are not repeated.

    Raises:
        NothingToJudge: No cases or no seeds.
    """
    if not cases or not settings.seeds:
        raise NothingToJudge
    unedited = _Unedited(draw, settings.unedited_bytes)
    if settings.cake_seeds:
        yield from _set_bars(cases, unedited, judge, journal, settings.cake_seeds)
    found: list[Done] = []
    for number, case in enumerate(cases):
        done = journal.done(case)
        if done is None:
            stage = Progress(stage="case", done=number, total=len(cases), message=case.key)
            yield stage
            outcome = yield from _fit(case, fit)
            scores = yield from _judged(case, outcome, draw, unedited, judge, journal, settings)
            done = Done(case=case, outcome=outcome, scores=tuple(scores))
            journal.add(done)
        found.append(done)
    return summarise(found, journal.header, journal.bars)


def _set_bars(
    cases: Sequence[Case], unedited: "_Unedited", judge: Judge, journal: Journal, seeds: int
) -> Generator[Progress, None, None]:
    """How like each right answer the unedited model's own pictures of it are."""
    texts = list(dict.fromkeys(p.right for c in cases for p in c.probes))
    for number, text in enumerate(texts):
        if text in journal.bars:
            continue
        yield Progress(stage="bar", done=number, total=len(texts), message=text)
        pictures = list(unedited.draw([Drawing(prompt=text, seed=s) for s in range(seeds)]))
        likeness = [v.similarity for v in judge(pictures, [(text, "")] * seeds)]
        journal.add_bar(text, cake_bar([s for s in likeness if s is not None]))


def _fit(case: Case, fit: Fit) -> Generator[Progress, None, Outcome]:
    started = monotonic()
    try:
        fitted = yield from fit(case)
    except Refusal as refusal:
        why = refusal.why if isinstance(refusal, FitRefused) else refusal.code
        return Outcome(case=case.key, edit=None, refused=why, seconds=monotonic() - started)
    return Outcome(
        case=case.key,
        edit=fitted.edit,
        digest=fitted.digest,
        seconds=monotonic() - started,
        report=dict(fitted.report),
    )


@dataclass(frozen=True)
class _Wish:
    arm: Arm
    number: int
    probe: Probe
    drawing: Drawing


def _wishes(case: Case, outcome: Outcome, seeds: Sequence[int]) -> list[_Wish]:
    """Every picture of a case, the edited arm first."""
    arms: tuple[Arm, ...] = ("edited", "base", "oracle")
    found: list[_Wish] = []
    for arm in arms:
        for number, probe in enumerate(case.probes):
            prompt = probe.oracle if arm == "oracle" else probe.prompt
            if prompt is None:
                continue
            edit = outcome.edit if arm == "edited" else None
            found += [
                _Wish(arm, number, probe, Drawing(prompt=prompt, seed=seed, edit=edit))
                for seed in seeds
            ]
    return found


def _judged(  # noqa: PLR0913, PLR0917 - the run's parts, handed through
    case: Case,
    outcome: Outcome,
    draw: Draw,
    unedited: "_Unedited",
    judge: Judge,
    journal: Journal,
    settings: FactSettings,
) -> Generator[Progress, None, list[Score]]:
    wishes = _wishes(case, outcome, settings.seeds)
    edited = [w for w in wishes if w.drawing.edit is not None]
    plain = [w for w in wishes if w.drawing.edit is None]
    scores: list[Score] = []
    for group, source in ((edited, draw), (plain, unedited.draw)):
        pictures: list[Picture] = []
        for picture in source([w.drawing for w in group]):
            pictures.append(picture)
            done = len(scores) + len(pictures)
            yield Progress(stage="draw", done=done, total=len(wishes), message=case.key)
        scores += _scores(case, group, pictures, judge)
        for wish, picture in zip(group, pictures, strict=True):
            if wish.drawing.seed in settings.seeds[: settings.kept_seeds]:
                journal.keep(picture)
    return scores


def _scores(
    case: Case, wishes: Sequence[_Wish], pictures: Sequence[Picture], judge: Judge
) -> list[Score]:
    if not wishes:
        return []
    verdicts = judge(pictures, [(w.probe.right, w.probe.wrong) for w in wishes])
    return [
        _score(case, wish, picture, verdict)
        for wish, picture, verdict in zip(wishes, pictures, verdicts, strict=True)
    ]


def _score(case: Case, wish: _Wish, picture: Picture, verdict: Verdict) -> Score:
    return Score(
        case=case.key,
        arm=wish.arm,
        probe=wish.number,
        part=wish.probe.part,
        tag=wish.probe.tag,
        prompt=wish.drawing.prompt,
        seed=wish.drawing.seed,
        best=verdict.best,
        right=float(verdict.probabilities.get(wish.probe.right, 0.0)),
        wrong=float(verdict.probabilities.get(wish.probe.wrong, 0.0)),
        correct=verdict.best == wish.probe.right,
        picture=pixels_digest(picture),
        similarity=verdict.similarity,
    )


class _Unedited:
    """Pictures of the unedited model, drawn once for all cases that share them, within bounds."""

    def __init__(self, draw: Draw, capacity_bytes: int) -> None:
        self._draw, self._capacity = draw, capacity_bytes
        self._kept: OrderedDict[tuple[str, int], Picture] = OrderedDict()
        self._bytes = 0

    def draw(self, drawings: Sequence[Drawing]) -> Iterable[Picture]:
        """The pictures in order; what is missing is drawn in one call."""
        here = {
            (d.prompt, d.seed): self._kept[d.prompt, d.seed]
            for d in drawings
            if (d.prompt, d.seed) in self._kept
        }
        missing = list(dict.fromkeys(d for d in drawings if (d.prompt, d.seed) not in here))
        fresh = zip(missing, self._draw(missing) if missing else (), strict=True)
        for wanted in drawings:
            place = wanted.prompt, wanted.seed
            while place not in here:
                drawn, picture = next(fresh)
                here[drawn.prompt, drawn.seed] = picture
                self._keep((drawn.prompt, drawn.seed), picture)
            yield here[place]

    def _keep(self, place: tuple[str, int], picture: Picture) -> None:
        self._kept[place] = picture
        self._bytes += picture.nbytes
        while self._bytes > self._capacity:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


def summarise(
    done: Sequence[Done], header: Mapping[str, object], bars: Mapping[str, float] | None = None
) -> FactReport:
    """The tables of a run, from its single scores; `bars` are CAKE's, per right answer."""
    kinds = list(dict.fromkeys(d.case.kind for d in done))
    groups = {"all": list(done)} | {k: [d for d in done if d.case.kind == k] for k in kinds}
    edited = [s for d in done for s in d.scores if s.arm == "edited"]
    tags = list(dict.fromkeys(f"{s.part}: {s.tag}" for s in edited if s.tag))
    return FactReport(
        header=header,
        groups={name: _arms(members, bars or {}) for name, members in groups.items()},
        tags={t: _share([s for s in edited if f"{s.part}: {s.tag}" == t]) for t in tags},
        validity=_validity(done),
        refused={d.case.key: d.outcome.refused for d in done if d.outcome.refused},
        fit_seconds=sum(d.outcome.seconds for d in done) / len(done),
        done=tuple(done),
    )


def _arms(done: Sequence[Done], bars: Mapping[str, float]) -> dict[Arm, Measures]:
    arms: tuple[Arm, ...] = ("base", "oracle", "edited")
    return {arm: _measures(done, arm, bars) for arm in arms}


def _measures(done: Sequence[Done], arm: Arm, bars: Mapping[str, float]) -> Measures:
    asked = {d.case.key: d.case.probes for d in done}
    scores = [s for d in done for s in d.scores if s.arm == arm]
    parts: dict[Part, list[Score]] = {p: [s for s in scores if s.part == p] for p in PARTS}
    general = [s.right for s in parts["generality"]]
    shares: dict[Part, Estimate] = {part: _share(found) for part, found in parts.items() if found}
    return Measures(
        parts=shares,
        generality_75=sum(p > 0.75 for p in general) / len(general) if general else None,
        generality_90=sum(p > 0.90 for p in general) / len(general) if general else None,
        cake={
            part: _reaching([(s, bars[asked[s.case][s.probe].right]) for s in found])
            for part, found in parts.items()
            if bars and found
        },
    )


def _reaching(scores: Sequence[tuple[Score, float]]) -> float:
    return sum((s.similarity or -1.0) >= bar for s, bar in scores) / len(scores)


def _share(scores: Sequence[Score]) -> Estimate:
    return estimate(scores, [float(s.correct) for s in scores])


def _validity(done: Sequence[Done]) -> float:
    held: list[bool] = []
    for one in done:
        first = [s for s in one.scores if s.part == "efficacy"]
        old = {s.seed: s.best for s in first if s.arm == "base"}
        new = {s.seed: s.correct for s in first if s.arm == "oracle"}
        answers = {p.wrong for p in one.case.of("efficacy")}
        held += [old[seed] in answers and new.get(seed, True) for seed in old]
    return sum(held) / len(held) if held else 0.0
