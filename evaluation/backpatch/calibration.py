"""Find a plan of back-patching for a model and a task, and say honestly whether it helps.

One part of the examples chooses, by successive halving over the grid; the other part, which nothing
was chosen on, is reported: unpatched, with the chosen plan, and the paired gain with a bootstrap
interval. Examples that show one thing are not independent: they choose, are reported and are drawn
together. The same is done in words (the control of Nikankin et al. 2025): the same grid, written at
the tokens that describe the picture. The paper chooses and reports on the same prompts: among 585
plans that change nothing but noise, the best gains 2 to 4 points there.
"""

import random
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from evaluation.backpatch.example import Case, Cases, Dropped, Example, Form, Metric, preparing
from evaluation.backpatch.search import LEAST, within
from evaluation.backpatch.shares import Bootstrap, Gap, Share, clustered
from evaluation.backpatch.sweep import ROWS, Place, Sweep, grid
from evaluation.errors import UnusableExamples
from models.hosted import HostedModel
from models.progress import Progress

EVEN = 0.5
PLAIN = "plain"
"""The key of the unpatched answer in the book."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """What is tried, and how it is judged.

    Attributes:
        places: Plans; empty is every source above every target, for each of `windows`.
        windows: Odd.
        metric: What counts as right.
        positions: What is patched.
        choosing: Share of the examples that choose; the others are reported.
        first: Examples of the first round, as a share of those that choose.
        keep: Share of the plans that go on to the next round, which has as many times more.
        most: Patched answers that choosing may ask for, in each form; None is no bound.
        control: Whether the same is done in words.
        resamples: Of the bootstrap.
        seed: Of the split, the order and the bootstrap.
        rows: Plans that share a forward.
    """

    places: tuple[Place, ...] = ()
    windows: tuple[int, ...] = (1, 3, 5)
    metric: Metric = "label"
    positions: Literal["visual", "reference"] = "visual"
    choosing: float = EVEN
    first: float = 0.125
    keep: float = 0.25
    most: int | None = None
    control: bool = True
    resamples: int = 2000
    seed: int = 0
    rows: int = ROWS


@dataclass(kw_only=True)
class Book:
    """Every answer so far, by form, plan and example: where a run that broke goes on."""

    answers: dict[str, bool] = field(default_factory=dict)

    @staticmethod
    def key(case: Case, place: Place | None) -> str:
        """Of one answer."""
        plan = PLAIN if place is None else f"{place.source}>{place.target}w{place.window}"
        return f"{case.form}/{plan}/{case.id}"

    def right(self, case: Case, place: Place | None) -> bool:
        """Whether it was right; KeyError if it was not asked."""
        return self.answers[self.key(case, place)]

    def missing(self, case: Case, places: Sequence[Place]) -> list[Place]:
        """Plans that were not asked about this case."""
        return [place for place in places if self.key(case, place) not in self.answers]


@dataclass(frozen=True, kw_only=True)
class Answered(Progress):
    """A step of the sweep.

    Attributes:
        answers: What the book learned by it.
    """

    answers: Mapping[str, bool]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A plan on the part that chooses: how many examples saw it, and how many were right."""

    place: Place
    right: int
    examples: int

    @property
    def accuracy(self) -> float:
        """The share."""
        return self.right / self.examples


@dataclass(frozen=True, kw_only=True)
class Side:
    """One form, in pictures or in words.

    Attributes:
        place: The plan that the choosing part chose.
        chosen_on: Its accuracy there, and the unpatched one: too good by the choice.
        plain, patched, gain: On the reported part.
        tried: Every plan that was asked about.
        left_out: How many of the grid were not drawn, so that the budget of answers is kept.
        plain_choosing: The unpatched accuracy where plans were chosen.
    """

    form: Form
    place: Place
    chosen_on: Share
    plain_choosing: Share
    plain: Share
    patched: Share
    gain: Share
    tried: tuple[Tried, ...]
    left_out: int

    @property
    def helps(self) -> bool:
        """Whether the interval of the gain lies above nothing."""
        return self.gain.low > 0


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """What a calibration found.

    Attributes:
        image: In pictures.
        text: In words; None without a control.
        same_in_text: The image plan's gain in words, with the same layers.
        gap: How far words are ahead on the reported part, and how much of it the image plan closes;
            None without a control.
        layers: Of the decoder.
        answered, full_grid: Answers that were asked for, and those of every plan for every example;
            the unpatched ones count in both.
        seconds: It took, of this run.
    """

    image: Side
    text: Side | None
    same_in_text: Share | None
    gap: Gap | None
    layers: int
    dropped: tuple[Dropped, ...]
    settings: CalibrationSettings
    answered: int
    full_grid: int
    seconds: float
    header: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """One sentence."""
        side, gain = self.image, self.image.gain
        said = (
            f"{100 * gain.value:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] "
            f"on {gain.examples} examples that nothing was chosen on"
        )
        where = f"layer {side.place.source} back to {side.place.target}, window {side.place.window}"
        if side.helps:
            return f"Back-patching helps ({where}): {said}."
        if gain.high < 0:
            return f"Back-patching harms, even by the best plan found ({where}): {said}."
        return f"No plan was found that helps; the best is {where}: {said}."

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "verdict": self.verdict, "helps": self.image.helps}


def check(examples: Sequence[Example], settings: CalibrationSettings) -> None:
    """What is wrong with examples is said before a model has read them, as far as it can be known.

    Raises:
        UnusableExamples: Too few of them can choose or be reported, or have labels to choose among;
            or those that choose are more than the answers that choosing may ask for.
    """
    apart = [one for one in examples if settings.metric == "exact" or len(set(one.labels)) > 1]
    if examples and not apart:
        raise UnusableExamples(
            "No example has two labels, and `label` chooses among them.",
            "labels",
            "Send `labels`, what an answer can be; or use the metric `exact`.",
        )
    choosing, _ = _split(_clusters(apart), settings)
    if settings.most is not None and settings.most < len(choosing):
        raise UnusableExamples(
            f"Choosing may ask for {settings.most} answers, and one plan alone is asked about all "
            f"{len(choosing)} examples that choose.",
            "search.answers",
            f"Allow {len(choosing)} at least, or send fewer examples.",
        )


def calibrate(
    hosted: HostedModel,
    examples: Sequence[Example],
    settings: CalibrationSettings | None = None,
    book: Book | None = None,
) -> Generator[Progress, None, CalibrationReport]:
    """Choose a plan on one part of the examples, report it on the other.

    Each step is one forward of `settings.rows` plans at most; what it found is in the book, and
    told, when it is over.

    Args:
        hosted: The model; nobody else may use it meanwhile.
        examples: With known answers.
        settings: What is tried.
        book: What is known already; it is filled as answers come.

    Raises:
        UnusableExamples: Too few examples are left, or the model reads no pictures.
    """
    settings, book = settings or CalibrationSettings(), book or Book()
    began = time.monotonic()
    cases = yield from preparing(hosted, examples, settings.metric, settings.positions)
    sweep = Sweep(hosted, settings.metric, settings.rows)
    places = settings.places or grid(sweep.layers, settings.windows)
    _check(places, sweep.layers)
    clusters = _clusters([case.example for case in cases.image])
    choosing, reported = _split(clusters, settings)
    run = _Run(sweep, settings, book, places, clusters)
    image = yield from run.side(cases.image, choosing, reported)
    text, same, gap = None, None, None
    if settings.control and _enough(cases.text, clusters, choosing, reported):
        text = yield from run.side(cases.text, choosing, reported)
        told = [case for case in cases.text if case.id in reported]
        yield from run.ask(told, [image.place], "the same plan in words")
        same = run.gain(told, image.place)
        gap = run.gap(_of(cases.image, reported), told, image.place)
    full = (len(places) + 1) * (len(cases.image) + (len(cases.text) if text else 0))
    return CalibrationReport(
        image=image,
        text=text,
        same_in_text=same,
        gap=gap,
        layers=sweep.layers,
        dropped=cases.dropped,
        settings=settings,
        answered=len(book.answers),
        full_grid=full,
        seconds=time.monotonic() - began,
        header=_header(hosted, cases),
    )


class _Run:
    """One calibration: what was asked is in the book."""

    def __init__(
        self,
        sweep: Sweep,
        settings: CalibrationSettings,
        book: Book,
        places: Sequence[Place],
        clusters: Mapping[str, str],
    ) -> None:
        self.sweep, self.settings, self.book, self.places = sweep, settings, book, tuple(places)
        self.clusters = clusters
        self.bootstrap = Bootstrap(resamples=settings.resamples, seed=settings.seed)

    def side(
        self, cases: Sequence[Case], choosing: Sequence[str], reported: Sequence[str]
    ) -> Generator[Progress, None, Side]:
        """Choose on some, report on others."""
        choose, report = _of(cases, choosing), _of(cases, reported)
        form = cases[0].form
        place = yield from self._halve(choose, form)
        yield from self.ask(report, [place], f"reporting ({form})")
        tried = tuple(self._tried(choose))
        return Side(
            form=form,
            place=place,
            chosen_on=self.share(choose, place),
            plain_choosing=self.share(choose, None),
            plain=self.share(report, None),
            patched=self.share(report, place),
            gain=self.gain(report, place),
            tried=tried,
            left_out=len(self.places) - len(tried),
        )

    def ask(self, cases: Sequence[Case], places: Sequence[Place], stage: str) -> Iterator[Progress]:
        """Every plan for every case, but for what is in the book."""
        for done, case in enumerate(cases):
            missing = self.book.missing(case, places)
            if not missing and self.book.key(case, None) in self.book.answers:
                yield self._told(stage, done + 1, len(cases), {})
                continue
            clean = self.sweep.clean(case)
            plain = {self.book.key(case, None): self.sweep.baseline(case, clean)}
            yield self._told(stage, done, len(cases), plain)
            for some in self.sweep.answered(case, clean, missing):
                found = {self.book.key(case, place): hit for place, hit in some.items()}
                yield self._told(stage, done, len(cases), found)
            yield self._told(stage, done + 1, len(cases), {})

    def _told(self, stage: str, done: int, total: int, found: Mapping[str, bool]) -> Answered:
        self.book.answers |= found
        values = {"answers": float(len(self.book.answers))}
        return Answered(stage=stage, done=done, total=total, values=values, answers=found)

    def _halve(self, cases: Sequence[Case], form: Form) -> Generator[Progress, None, Place]:
        """The plan that is best on all cases, among those that were good enough on fewer."""
        settings = self.settings
        left, rounds = within(
            self.places,
            len(cases),
            first=settings.first,
            keep=settings.keep,
            most=settings.most,
            seed=settings.seed,
        )
        for turn, one in enumerate(rounds, 1):
            left = left[: one.plans]
            some = cases[: one.seen]
            yield from self.ask(some, left, f"choosing ({form}), round {turn}")
            left = tuple(sorted(left, key=partial(self._rank, some)))
        return left[0]

    def _rank(self, cases: Sequence[Case], place: Place) -> tuple[float, int, Place]:
        """Best first; among equals the cheaper detour."""
        hits = sum(self.book.right(case, place) for case in cases)
        return -hits / len(cases), place.source - place.target + place.window, place

    def _tried(self, cases: Sequence[Case]) -> Iterator[Tried]:
        for place in self.places:
            asked = [case for case in cases if self.book.key(case, place) in self.book.answers]
            if not asked:  # it was not drawn
                continue
            hits = sum(self.book.right(case, place) for case in asked)
            yield Tried(place=place, right=hits, examples=len(asked))

    # --- shares with intervals --------------------------------------------------------------------

    def _hits(self, cases: Sequence[Case], place: Place | None) -> Float[np.ndarray, " examples"]:
        return np.array([float(self.book.right(case, place)) for case in cases])

    def _drawn(self, cases: Sequence[Case]) -> list[str]:
        return [self.clusters[case.id] for case in cases]

    def share(self, cases: Sequence[Case], place: Place | None) -> Share:
        """Of right answers."""
        return self.bootstrap.share(self._drawn(cases), self._hits(cases, place))

    def gain(self, cases: Sequence[Case], place: Place) -> Share:
        """Of the plan over no plan, paired by example."""
        gains = self._hits(cases, place) - self._hits(cases, None)
        return self.bootstrap.share(self._drawn(cases), gains)

    def gap(self, image: Sequence[Case], text: Sequence[Case], place: Place) -> Gap:
        """To the same questions in words."""
        image = _of(image, [case.id for case in text])
        plain, patched = self._hits(image, None), self._hits(image, place)
        return self.bootstrap.gap(self._drawn(image), self._hits(text, None), plain, patched)


def _clusters(examples: Sequence[Example]) -> dict[str, str]:
    """Per id of an example its cluster."""
    named = clustered([one.shows for one in examples])
    return {one.id: name for one, name in zip(examples, named, strict=True)}


def _split(
    clusters: Mapping[str, str], settings: CalibrationSettings
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which examples choose, in the order in which rounds see them, and which are reported.

    Clusters stay together: what chose is not reported.
    """
    alike: dict[str, list[str]] = {}
    for name, cluster in clusters.items():
        alike.setdefault(cluster, []).append(name)
    shuffled = list(alike.values())
    random.Random(settings.seed).shuffle(shuffled)  # noqa: S311 - a split, not a secret
    cut = round(settings.choosing * len(clusters))
    choosing, reported = list[str](), list[str]()
    for some in shuffled:
        (choosing if len(choosing) < cut else reported).extend(some)
    told = {clusters[name] for name in reported}
    if min(len(choosing), len(told)) < LEAST:
        raise _too_few(len(clusters), len(alike), len(choosing), len(told), settings)
    return tuple(choosing), tuple(reported)


def _too_few(
    examples: int, clusters: int, choosing: int, told: int, settings: CalibrationSettings
) -> UnusableExamples:
    """Whether more examples would help, or another share of them."""
    few = clusters < 2 * LEAST or settings.choosing == EVEN
    return UnusableExamples(
        f"Of {examples} examples of {clusters} pictures {choosing} would choose, and those that "
        f"are reported show {told}; each number must be {LEAST} at least.",
        "examples" if few else "choosing",
        "Send more examples, of more pictures; a share of 0.5 (`choosing`) divides them evenly.",
    )


def _of(cases: Sequence[Case], ids: Sequence[str]) -> list[Case]:
    by_id = {case.id: case for case in cases}
    return [by_id[name] for name in ids if name in by_id]


def _enough(
    cases: Sequence[Case],
    clusters: Mapping[str, str],
    choosing: Sequence[str],
    reported: Sequence[str],
) -> bool:
    told = {clusters[case.id] for case in _of(cases, reported)}
    return min(len(_of(cases, choosing)), len(told)) >= LEAST


def _check(places: Sequence[Place], layers: int) -> None:
    for place in places:
        if not 0 <= place.target < place.source < layers or place.window % 2 == 0:
            raise UnusableExamples(f"{place} leads nowhere in {layers} layers.")


def _header(hosted: HostedModel, cases: Cases) -> dict[str, Any]:
    return {
        "model": hosted.name,
        "family": hosted.family.kind,
        "fingerprint": hosted.fingerprint,
        "dtype": str(hosted.dtype).removeprefix("torch."),
        "examples": len(cases.image),
        "in words": len(cases.text),
    }
