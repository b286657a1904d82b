"""What a text encoder knows at each layer: shares of judged pictures, as curves with intervals.

The protocol of the Diffusion Lens (Toker et al. 2024, sections 3 and 4): every prompt is drawn
from every layer, several seeds each, and a judge says of each picture whether object, colour,
scene and identity are right. With edits the same prompts are drawn under them too, so that the
layer shows at which a new fact appears.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from editors.progress import Progress
from evaluation.errors import NothingToJudge
from evaluation.judge import Picture, Verdict
from evaluation.protocol import Estimate, JsonLines, estimate, pixels_digest, resampled

Group = Literal["simple", "compound"]
Frequency = Literal["common", "rare"]
Place = Literal["whole", "either", "left", "right"]
"""Where it must be seen: all over the picture, in one of its halves, or in that half."""
Arm = Literal["unedited", "edited"]
ALL_RIGHT = "all right"
"""A question of our own: every question of the picture is answered right, as the paper counts."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a picture; a judge says what it sees instead of yes or no.

    Attributes:
        question: `object`, `colour`, `scene`, `human`, `identity`, ...: each has its own curve.
        right: The answer, as the judge words it.
        place: Where to look.
        options: The texts that a judge without labels of its own chooses from, `right` among them.
    """

    question: str
    right: str
    place: Place = "whole"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LensCase:
    """A prompt that is drawn from every layer, and what its pictures are asked.

    Attributes:
        key: Its name in the journal.
        prompt: The text.
        group: One thing, or several that have to be bound to each other.
        questions: What must be in the picture.
        frequency: How often training told of it, where that is known.
        kind: A finer group: `object`, `two coloured objects`, ...
    """

    key: str
    prompt: str
    group: Group
    questions: tuple[Question, ...]
    frequency: Frequency | None = None
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Pictures that are wanted: one per layer and seed, in this order."""

    prompt: str
    layers: tuple[int, ...]
    seeds: tuple[int, ...]
    edits: tuple[str, ...] = ()


Draw = Callable[[Sequence[Look]], Iterable[Sequence[Picture]]]
"""Per look its pictures, in the order of the looks, each look as soon as it is there."""
LensJudge = Callable[[Sequence[Picture], Sequence[Question]], list[Verdict]]
"""judge(pictures, questions): what it sees of each picture; right if that is the question's."""


@dataclass(frozen=True, kw_only=True)
class LensSettings:
    """How a run is made; part of the journal's header.

    Attributes:
        layers: As `hidden_states` counts; the last of them is what "final" means.
        seeds: One picture each.
        edits: If there are any, every prompt is also drawn under them.
    """

    layers: tuple[int, ...]
    seeds: tuple[int, ...] = (0, 1)
    edits: tuple[str, ...] = ()

    @property
    def arms(self) -> Mapping[Arm, tuple[str, ...]]:
        """Per arm the edits that it is drawn with."""
        return {"unedited": (), "edited": self.edits} if self.edits else {"unedited": ()}


@dataclass(frozen=True, kw_only=True)
class LensScore:
    """One question about one picture, answered: a line of the journal.

    Attributes:
        case: The case's key.
        arm: Without or with the edits.
        layer: Which the picture was drawn from.
        seed: Of the picture.
        asked: The question's number within its case.
        saw: The judge's answer.
        right: How probable it thought the right one.
        correct: Whether it saw the right one.
        picture: SHA-256 of the picture's pixels.
    """

    case: str
    arm: Arm
    layer: int
    seed: int
    asked: int
    saw: str
    right: float
    correct: bool
    picture: str


@dataclass(frozen=True, kw_only=True)
class LensDone:
    """A case with everything that was judged about it."""

    case: LensCase
    scores: tuple[LensScore, ...]


class LensJournal(JsonLines):
    """Per case its scores and, last, a line that it is complete."""

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        self._done: dict[str, tuple[LensScore, ...]] = {}
        self._waiting: list[LensScore] = []
        super().__init__(path, header)

    def done(self, case: LensCase) -> LensDone | None:
        """What an earlier run found about the case."""
        found = self._done.get(case.key)
        return None if found is None else LensDone(case=case, scores=found)

    def add(self, done: LensDone) -> None:
        """Append a case."""
        self._done[done.case.key] = done.scores
        self._append(_lines(done.case.key, done.scores))

    def _take(self, kind: str, line: dict[str, Any]) -> None:
        if kind == "score":
            self._waiting.append(LensScore(**line))
            return
        self._done[line["case"]] = tuple(s for s in self._waiting if s.case == line["case"])
        self._waiting = []

    def _kept(self) -> Iterable[Mapping[str, object]]:
        for key, scores in self._done.items():
            yield from _lines(key, scores)


def _lines(key: str, scores: Sequence[LensScore]) -> list[Mapping[str, object]]:
    return [*({"line": "score"} | asdict(s) for s in scores), {"line": "case", "case": key}]


@dataclass(frozen=True, kw_only=True)
class Halfway:
    """The first layer at which a curve passes half of its final value.

    Attributes:
        layer: None if nothing is right at the final layer.
        low: Lower end of the 95 % bootstrap interval over prompts.
        high: Its upper end.
    """

    layer: int | None
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Shares of pictures with the right answer, one per layer.

    Attributes:
        arm: Without or with the edits.
        of: Which prompts: `all`, `simple`, `rare`, `kind: object`, ...
        question: Which question, or `ALL_RIGHT`.
        shares: In the order of the report's layers.
        halfway: Where half of the final share is passed.
    """

    arm: Arm
    of: str
    question: str
    shares: tuple[Estimate, ...]
    halfway: Halfway


@dataclass(frozen=True, kw_only=True)
class LensReport:
    """What a run found.

    Attributes:
        header: What the run was made with: settings, model, judge, versions.
        layers: In rising order.
        curves: All of them.
        done: The cases with every score.
    """

    header: Mapping[str, object]
    layers: tuple[int, ...]
    curves: tuple[Curve, ...]
    done: tuple[LensDone, ...] = field(repr=False)

    def curve(self, of: str, question: str, arm: Arm = "unedited") -> Curve | None:
        """The curve of these prompts and this question, if it was asked."""
        wanted = arm, of, question
        return next((c for c in self.curves if (c.arm, c.of, c.question) == wanted), None)

    def as_dict(self) -> dict[str, object]:
        """Plain data, without the single scores (they are in the journal)."""
        return {
            "header": dict(self.header),
            "cases": len(self.done),
            "layers": list(self.layers),
            "curves": [asdict(c) for c in self.curves],
        }


def evaluate_lens(
    cases: Sequence[LensCase],
    draw: Draw,
    judge: LensJudge,
    journal: LensJournal,
    settings: LensSettings,
) -> Generator[Progress, None, LensReport]:
    """Draw every case from every layer and judge it; what the journal holds is not repeated.

    Raises:
        NothingToJudge: No cases, no layers or no seeds.
    """
    if not cases or not settings.layers or not settings.seeds:
        raise NothingToJudge
    missing = [case for case in cases if journal.done(case) is None]
    looks = [_look(case, edits, settings) for case in missing for edits in settings.arms.values()]
    drawn = draw(looks) if looks else iter(())
    with closing(_closable(drawn)) as sweeps:
        for number, case in enumerate(cases):
            yield Progress(stage="case", done=number, total=len(cases), message=case.key)
            if journal.done(case) is None:
                scores: list[LensScore] = []
                for arm in settings.arms:
                    scores += _judged(case, arm, next(sweeps), judge, settings)
                journal.add(LensDone(case=case, scores=tuple(scores)))
    found = [done for case in cases if (done := journal.done(case)) is not None]
    return summarise(found, settings, journal.header)


def _closable(
    sweeps: Iterable[Sequence[Picture]],
) -> Generator[Sequence[Picture], None, None]:
    """So that a run that is given up stops its drawing at once."""
    yield from sweeps


def _look(case: LensCase, edits: tuple[str, ...], settings: LensSettings) -> Look:
    return Look(prompt=case.prompt, layers=settings.layers, seeds=settings.seeds, edits=edits)


def _judged(
    case: LensCase,
    arm: Arm,
    pictures: Sequence[Picture],
    judge: LensJudge,
    settings: LensSettings,
) -> Iterable[LensScore]:
    """Every question about every picture of one sweep."""
    places = [(layer, seed) for layer in settings.layers for seed in settings.seeds]
    asked = [
        (layer, seed, picture, number)
        for (layer, seed), picture in zip(places, pictures, strict=True)
        for number in range(len(case.questions))
    ]
    questions = [case.questions[number] for *_, number in asked]
    verdicts = judge([picture for _, _, picture, _ in asked], questions)
    for (layer, seed, picture, number), question, verdict in zip(
        asked, questions, verdicts, strict=True
    ):
        yield LensScore(
            case=case.key,
            arm=arm,
            layer=layer,
            seed=seed,
            asked=number,
            saw=verdict.best,
            right=float(verdict.probabilities.get(question.right, 0.0)),
            correct=verdict.best == question.right,
            picture=pixels_digest(picture),
        )


def summarise(
    done: Sequence[LensDone], settings: LensSettings, header: Mapping[str, object]
) -> LensReport:
    """The curves of a run, from its single scores."""
    layers = tuple(sorted(settings.layers))
    curves = [
        curve
        for arm in settings.arms
        for of, members in _slices(done).items()
        for curve in _curves(arm, of, members, layers)
    ]
    return LensReport(header=header, layers=layers, curves=tuple(curves), done=tuple(done))


def _slices(done: Sequence[LensDone]) -> dict[str, list[LensDone]]:
    """All cases, then each group, frequency and kind that occurs."""
    found: dict[str, list[LensDone]] = {"all": list(done)}
    for names in (
        lambda case: case.group,
        lambda case: case.frequency,
        lambda case: f"kind: {case.kind}" if case.kind else None,
    ):
        for one in done:
            if name := names(one.case):
                found.setdefault(name, []).append(one)
    return found


@dataclass(frozen=True)
class _Trace:
    """One question about one seed of a case, right or wrong at each layer."""

    case: str
    seed: int
    right: tuple[bool, ...]


def _curves(arm: Arm, of: str, done: Sequence[LensDone], layers: Sequence[int]) -> Iterable[Curve]:
    traces: dict[str, list[_Trace]] = {}
    for one in done:
        for question, trace in _traces(one, arm, layers):
            traces.setdefault(question, []).append(trace)
    for question in sorted(traces, key=lambda name: name == ALL_RIGHT):
        yield _curve(arm, of, question, traces[question], layers)


def _traces(done: LensDone, arm: Arm, layers: Sequence[int]) -> Iterable[tuple[str, _Trace]]:
    found = {(s.layer, s.seed, s.asked): s.correct for s in done.scores if s.arm == arm}
    numbers = range(len(done.case.questions))
    for seed in sorted({s.seed for s in done.scores}):
        for number, question in enumerate(done.case.questions):
            right = tuple(found[layer, seed, number] for layer in layers)
            yield question.question, _Trace(done.case.key, seed, right)
        whole = tuple(all(found[layer, seed, n] for n in numbers) for layer in layers)
        yield ALL_RIGHT, _Trace(done.case.key, seed, whole)


def _curve(
    arm: Arm, of: str, question: str, traces: Sequence[_Trace], layers: Sequence[int]
) -> Curve:
    right = np.array([t.right for t in traces], dtype=np.float64)
    shares = tuple(estimate(traces, right[:, i].tolist()) for i in range(len(layers)))
    return Curve(
        arm=arm, of=of, question=question, shares=shares, halfway=_halfway(traces, right, layers)
    )


def _halfway(traces: Sequence[_Trace], right: np.ndarray, layers: Sequence[int]) -> Halfway:
    final = right[:, -1].mean()
    if not final:
        return Halfway(layer=None)
    means = resampled([t.case for t in traces], right)
    means = means[means[:, -1] > 0]
    passed = np.argmax(means >= means[:, -1:] / 2, axis=1)
    low, high = np.percentile(passed, [2.5, 97.5], method="nearest").astype(int)
    first = int(np.argmax(right.mean(0) >= final / 2))
    return Halfway(layer=layers[first], low=layers[low], high=layers[high])
