"""Does back-patching close the gap between pictures and words? Task by task, beside the paper.

Each task is calibrated by itself: words, pictures, and pictures with the plan that one half of the
examples chose, on the other half; then its pictures and descriptions are compared layer by layer,
which is how the paper explains the gap (Nikankin et al. 2025).
"""

from collections.abc import Generator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from evaluation.backpatch.alignment import Alignment, align
from evaluation.backpatch.calibration import (
    Book,
    CalibrationReport,
    CalibrationSettings,
    calibrate,
)
from evaluation.backpatch.example import Example
from evaluation.errors import NothingToJudge
from models.hosted import HostedModel
from models.progress import Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Studied:
    """A task to study.

    Attributes:
        name: In the report.
        examples: With descriptions, if words are to be compared.
        paper: The task of the paper that it is like; None if there is none.
    """

    name: str
    examples: Sequence[Example]
    paper: str | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found of a task; no alignment where it was not asked for."""

    name: str
    paper: str | None
    calibration: CalibrationReport
    alignment: Alignment | None

    @property
    def chosen_gain(self) -> float:
        """The best plan's gain on the half that chose it: the way the paper counts."""
        side = self.calibration.image
        return side.chosen_on.value - side.plain_choosing.value


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """All tasks, and what they were studied with."""

    findings: tuple[Finding, ...]
    settings: CalibrationSettings
    header: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """One sentence."""
        helped = [one.name for one in self.findings if one.calibration.image.helps]
        gaps = [one.calibration.gap for one in self.findings]
        ahead = [gap for gap in gaps if gap is not None and gap.ahead.value > 0]
        count = len(self.findings)
        said = f"Words are ahead of pictures in {len(ahead)} of {count} tasks"
        if not helped:
            return f"{said}; back-patching helps in none of them."
        return f"{said}; back-patching helps in {len(helped)}: {', '.join(helped)}."

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; of each task what a calibration tells, but for its many plans."""
        return {
            "verdict": self.verdict,
            "header": dict(self.header),
            "settings": asdict(self.settings),
            "findings": [_told(one) for one in self.findings],
        }


def study(
    hosted: HostedModel,
    tasks: Sequence[Studied],
    settings: CalibrationSettings | None = None,
    *,
    aligned: int = 100,
    books: MutableMapping[str, Book] | None = None,
    header: Mapping[str, Any] | None = None,
) -> Generator[Progress, None, StudyReport]:
    """Calibrate every task, and compare its pictures with their descriptions.

    Args:
        hosted: The model; nobody else may use it meanwhile.
        tasks: Each with a name of its own.
        settings: Of every calibration.
        aligned: How many examples of each task are compared; 0 for none.
        books: By task what is known already; filled as answers come.
        header: What the report says of how it was made.

    Raises:
        NothingToJudge: There is no task.
        UnusableExamples: A task has too few examples, or the model reads no pictures.
    """
    settings = settings or CalibrationSettings()
    books = {} if books is None else books
    if not tasks:
        raise NothingToJudge
    found = []
    for task in tasks:
        book = books.setdefault(task.name, Book())
        calibrated = yield from _of(task, calibrate(hosted, task.examples, settings, book))
        alignment = None
        if aligned and calibrated.text is not None:
            some = task.examples[:aligned]
            alignment = yield from _of(task, align(hosted, some, settings.seed))
        found.append(
            Finding(name=task.name, paper=task.paper, calibration=calibrated, alignment=alignment)
        )
    return StudyReport(findings=tuple(found), settings=settings, header=header or {})


def _of(task: Studied, steps: Generator[Progress, None, Any]) -> Generator[Progress, None, Any]:
    """The same steps, each named by its task."""
    while True:
        try:
            step = next(steps)
        except StopIteration as over:
            return over.value
        yield replace(step, stage=f"{task.name}: {step.stage}")


def _told(one: Finding) -> dict[str, Any]:
    told = one.calibration.as_dict()
    for side in ("image", "text"):
        if told[side] is not None:
            told[side] = {name: value for name, value in told[side].items() if name != "tried"}
    kept = {name: told[name] for name in told if name not in {"settings", "header"}}
    alignment = None if one.alignment is None else asdict(one.alignment)
    return {
        "name": one.name,
        "paper": one.paper,
        "chosen_gain": one.chosen_gain,
        **kept,
        "alignment": alignment,
    }
