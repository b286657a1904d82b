"""What an evaluation is made of: cases and their probes, judged lines in a journal, intervals."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from evaluation.errors import ProtocolDiffers

Part = Literal["efficacy", "generality", "specificity"]
Arm = Literal["edited", "base", "oracle"]
PARTS: tuple[Part, ...] = ("efficacy", "generality", "specificity")
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One prompt that is drawn, and what its picture is asked.

    `right` is what the edited model should show: the new fact at the edit prompt and its
    paraphrases, what was there before at a neighbour. `wrong` is the other answer: the old fact,
    or what a leak would show.
    """

    part: Part
    prompt: str
    right: str
    wrong: str
    oracle: str | None = None
    """The prompt that tells the unedited model the same in plain words."""
    tag: str = ""
    """`paraphrase`, `scene`, `president`, ...: tables are also split by it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fact to write, and the probes that measure what came of it."""

    key: str
    """Row number and text: the text alone repeats in published files."""
    kind: str
    prompt: str
    target: str
    probes: tuple[Probe, ...]
    subject: str | None = None
    source: str | None = None
    phrasings: tuple[tuple[str, str], ...] = ()
    """(prompt, subject) pairs that the fit is told about; never among the held-out probes."""
    neighbours: tuple[str, ...] = ()

    def of(self, part: Part) -> tuple[Probe, ...]:
        """The probes of one part."""
        return tuple(p for p in self.probes if p.part == part)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One picture, judged: a line of the journal.

    Attributes:
        case: The case's key.
        arm: `edited`; `base`, the same prompt without the edit; `oracle`, the unedited model told
            the new fact in words.
        probe: The probe's number within its case.
        best: What the judge saw.
        right: P(right answer) under the judge's own softmax.
        wrong: P(wrong answer).
        correct: Whether the judge saw the right answer.
        picture: SHA-256 of the picture's pixels.
        similarity: The judge's cosine of picture and right answer, where it has one.
    """

    case: str
    arm: Arm
    probe: int
    part: Part
    tag: str
    prompt: str
    seed: int
    best: str
    right: float
    wrong: float
    correct: bool
    picture: str
    similarity: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the fit of one case gave: an edit, or a refusal."""

    case: str
    edit: str | None
    """How the drawing side names the edit; None if the fit was refused."""
    digest: str | None = None
    seconds: float = 0.0
    refused: str | None = None
    report: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A case with everything that was judged about it."""

    case: Case
    outcome: Outcome
    scores: tuple[Score, ...]


class JsonLines:
    """A file that outlives a stopped run: a header, then what is known of it, a line each.

    It is written anew when it is opened, so that what was cut short (the last line may be torn) is
    dropped. Pictures that a run keeps lie beside it.
    """

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        """Open or begin the file.

        Raises:
            ProtocolDiffers: The file was begun under another header.
        """
        self.path = path
        self.header: dict[str, object] = json.loads(json.dumps(dict(header) | {"format": FORMAT}))
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            self._read()
        part = path.with_name(path.name + ".part")
        part.write_text(_text([self.header, *self._kept()]), encoding="utf-8")
        part.replace(path)

    def keep(self, picture: np.ndarray) -> Path:
        """Store a picture beside the journal, under its pixels' digest."""
        path = self.picture(pixels_digest(picture))
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path)
        return path

    def picture(self, digest: str) -> Path:
        """Where the picture of that digest is, if it was kept."""
        return self.path.parent / "pictures" / f"{digest[:32]}.png"

    def _take(self, kind: str, line: dict[str, Any]) -> None:
        """Remember a line of an earlier run."""
        raise NotImplementedError

    def _kept(self) -> Iterable[Mapping[str, object]]:
        """All lines that are worth keeping, without the header."""
        raise NotImplementedError

    def _append(self, lines: Iterable[Mapping[str, object]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text(lines))

    def _read(self) -> None:
        lines = _whole_lines(self.path)
        before = lines[0] if lines else {}
        for name, value in self.header.items():
            if before.get(name) != value:
                raise ProtocolDiffers(str(self.path), name)
        for line in lines[1:]:
            self._take(line.pop("line"), line)


class Journal(JsonLines):
    """Per case its scores and, last, its outcome: only then does it count as done."""

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        self._done: dict[str, tuple[Outcome, tuple[Score, ...]]] = {}
        self._waiting: list[Score] = []
        self.bars: dict[str, float] = {}
        super().__init__(path, header)

    def done(self, case: Case) -> Done | None:
        """What an earlier run found about the case."""
        found = self._done.get(case.key)
        return Done(case=case, outcome=found[0], scores=found[1]) if found else None

    def add(self, done: Done) -> None:
        """Append a case, its outcome last."""
        self._done[done.case.key] = (done.outcome, done.scores)
        self._append(_lines(done.outcome, done.scores))

    def add_bar(self, text: str, bar: float) -> None:
        """Append what the judge's cosine with a text must reach (see `cake_bar`)."""
        self.bars[text] = bar
        self._append([_bar_line(text, bar)])

    def _take(self, kind: str, line: dict[str, Any]) -> None:
        match kind:
            case "score":
                self._waiting.append(Score(**line))
            case "bar":
                self.bars[line["text"]] = line["bar"]
            case _:
                outcome = Outcome(**line)
                scores = tuple(s for s in self._waiting if s.case == outcome.case)
                self._done[outcome.case] = (outcome, scores)
                self._waiting = []

    def _kept(self) -> Iterable[Mapping[str, object]]:
        yield from (_bar_line(*bar) for bar in self.bars.items())
        for outcome, scores in self._done.values():
            yield from _lines(outcome, scores)


def _bar_line(text: str, bar: float) -> Mapping[str, object]:
    return {"line": "bar", "text": text, "bar": bar}


def _lines(outcome: Outcome, scores: Sequence[Score]) -> list[Mapping[str, object]]:
    told = [{"line": "score"} | asdict(s) for s in scores]
    return [*told, {"line": "outcome"} | asdict(outcome)]


def _text(lines: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share, with how sure it is.

    Attributes:
        value: The mean over rows, prompts and seeds.
        low: Lower end of the 95 % bootstrap interval over rows.
        high: Its upper end.
        deviation: Standard deviation of the per-seed means, as the paper's plus-or-minus.
        rows: How many cases it rests on.
        pictures: How many pictures were judged.
    """

    value: float
    low: float
    high: float
    deviation: float
    rows: int
    pictures: int


class Judged(Protocol):
    """What an estimate needs to know of a judged picture."""

    @property
    def case(self) -> str:
        """The case's key: pictures of one case stand and fall together."""
        ...

    @property
    def seed(self) -> int:
        """The picture's."""
        ...


def estimate(scores: Sequence[Judged], counted: Sequence[float]) -> Estimate:
    """The mean of `counted` (one number per score), rows weighted by their pictures.

    Rows are resampled as wholes: pictures of one fact stand and fall together.
    """
    values = np.asarray(counted, dtype=np.float64)
    rows = [s.case for s in scores]
    seeds = np.asarray([s.seed for s in scores])
    low, high = bootstrap(rows, values)
    means = [values[seeds == seed].mean() for seed in sorted(set(seeds.tolist()))]
    return Estimate(
        value=float(values.mean()),
        low=low,
        high=high,
        deviation=float(np.std(means)),
        rows=len(set(rows)),
        pictures=len(values),
    )


def bootstrap(
    rows: Sequence[str], values: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of the mean when whole rows are drawn with replacement."""
    means = resampled(rows, values[:, None], resamples=resamples, seed=seed)[:, 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def resampled(
    rows: Sequence[str], values: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """(resamples, k) means of (n, k) values, whole rows drawn with replacement."""
    names = sorted(set(rows))
    place = {name: i for i, name in enumerate(names)}
    sums, counts = np.zeros((len(names), values.shape[1])), np.zeros(len(names))
    np.add.at(sums, [place[r] for r in rows], values)
    np.add.at(counts, [place[r] for r in rows], 1)
    drawn = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
    times = np.zeros((resamples, len(names)))
    np.add.at(times, (np.arange(resamples)[:, None], drawn), 1)
    return (times @ sums) / (times @ counts)[:, None]


def pixels_digest(picture: np.ndarray) -> str:
    """SHA-256 of a picture's size and pixels."""
    return hashlib.sha256(str(picture.shape).encode() + picture.tobytes()).hexdigest()
