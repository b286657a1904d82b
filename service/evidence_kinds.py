"""The kinds of causal evidence: what each is asked, how it is found, and the files that tell it."""

import json
import math
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import torch
from annotated_types import MaxLen

from evaluation.advice import LayerAdvice, advise
from evaluation.audit import EditAudit, Suite, audit
from evaluation.behaviours.pairs import prepare
from evaluation.behaviours.swaps import prepare_swaps
from evaluation.circuits import files
from evaluation.circuits.drawing import draw_circuit, draw_curve
from evaluation.circuits.selection import Subgraph, select
from evaluation.circuits.study import Circuit, CircuitReport, Scored
from evaluation.circuits.study import study as find_circuit
from evaluation.evidence_plots import advice_png, audit_png
from evaluation.evidence_report import page
from evaluation.gate_bars import plot as draw_gates
from evaluation.gates import Gate, gate
from evaluation.noted import Noted, Stage, scores_data, scores_of
from evaluation.variables.benchmark import placed
from evaluation.variables.errors import BadStudy
from evaluation.variables.featurizers import Directions, Featurizer
from evaluation.variables.heatmap import plot
from evaluation.variables.report import VariableReport
from evaluation.variables.settings import LEARNED, OF_SAE, VariableStudy
from evaluation.variables.stored import Made, restored, stored
from evaluation.variables.study import Fitted
from evaluation.variables.study import study as find_variable
from evaluation.variables.submission import export, submission_bytes
from evaluation.variables.units import width
from models.errors import Refusal
from models.hosted import HostedModel
from models.patch import Patch
from models.progress import FOUND_BEFORE, Progress
from service.datasets import Dataset
from service.evidence_vectors import Save, Saved, saved, vector_toward
from service.registry.blobs import digest_of
from service.registry.tables import canonical
from service.schema_evaluations import settings_of
from steerers.dictionary import Dictionary

_DRAWN = (60, 200, 600)
"""Items of the circuit that is drawn: the first number that leaves any edge."""
_JSON_EDGES = 50_000
"""Graphs with more are told in `importances.pt` only."""
_SUBMITTED_BYTES = 2**29
"""Larger folders of featurizers (a rotation is kept with a square matrix, twice) are left out."""
_SUBMITTED = "featurizers.zip"
_SCORES, _FEATURIZERS = "scores", "featurizers"
"""Names of notes."""
_ELSEWHERE = 20
"""Texts of the model's corpus that are about anything else, where none are sent."""
_LEAST_TEXTS = 6
"""About anything else: the range of n values holds the median with 1 - 2^(1-n); 6 reach 95 %."""
_STAMP = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class CausalVariable(VariableStudy):
    """Where does a variable sit, and which vectors set it?"""

    toward: Annotated[tuple[Annotated[str, MaxLen(200)], ...], MaxLen(100)] = ()
    """Values, as answers are written: a control vector towards each, at the best unit."""
    save: Save | None = None
    """A name that the best unit's direction is registered under."""

    def check(self) -> None:
        """Refuse what comes to nothing: no unit, no SAE, features twice; `Save.check` the rest.

        Raises:
            BadStudy: Naming the param.
        """
        if not self.units:
            raise BadStudy("units is empty; name one, or leave it out for a sweep.", "units")
        asked = self.featurizer
        if asked.kind in OF_SAE and not asked.saes:
            raise BadStudy(f"{asked.kind} needs at least one SAE.", "featurizer.saes")
        _check_once(asked.features, "featurizer.features")
        if self.save is not None:
            self.save.check(self)


@dataclass(frozen=True, kw_only=True)
class FeatureGate(Gate):
    """Is an SAE feature a handle on a variable?"""

    sae: Annotated[str, MaxLen(200)]
    """Its id."""
    off_target: Annotated[tuple[Annotated[str, MaxLen(20_000)], ...], MaxLen(1000)] = ()
    """Texts about anything else; the model's own corpus when left out."""

    def check(self) -> None:
        """Refuse features twice, and texts of which nothing can be told.

        Raises:
            BadStudy: Naming the param.
        """
        _check_once(self.features, "features")
        for i, text in enumerate(self.off_target):
            if not text.strip():
                raise BadStudy("A text about anything else is empty.", f"off_target.{i}")
        if 0 < (given := len(set(self.off_target))) < _LEAST_TEXTS:
            raise BadStudy(
                f"off_target has {given} different texts, and {_LEAST_TEXTS} are needed: fewer "
                "have no 95 % interval. Left out, the model's own corpus is read.",
                "off_target",
            )


def _check_once(features: Sequence[int], param: str) -> None:
    twice = sorted({one for one in features if features.count(one) > 1})
    if twice:
        raise BadStudy(f"Named more than once: {', '.join(map(str, twice))}.", param)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What one evaluation looks at; the model is its own.

    Attributes:
        model: As the service calls it.
        edits: All of the request's, as one patch.
        suites: By name, for an audit.
        corpus: The model's own texts.
        noted: What an earlier worker of the job, or an equal job, has made whole.
    """

    hosted: HostedModel
    settings: Any
    dataset: Dataset | None = None
    edits: Patch = field(default_factory=Patch)
    suites: Mapping[str, Dataset] = field(default_factory=dict)
    dictionaries: Mapping[str, Dictionary] = field(default_factory=dict)
    corpus: Callable[[], Sequence[str]] = tuple
    noted: Noted = field(default_factory=dict)

    @property
    def rows(self) -> Dataset:
        """The data set; the route asked for it."""
        assert self.dataset is not None  # noqa: S101
        return self.dataset


@dataclass(frozen=True, kw_only=True)
class Found:
    """The report as JSON has it, the files beside it, and a direction that is to be registered."""

    report: Mapping[str, Any]
    files: Mapping[str, bytes]
    saved: Saved | None = None


Work = Generator[Progress, None, Found]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind.

    Attributes:
        settings: Its `params`, a frozen dataclass.
        rows: Which rows of the data set it reads; empty if it reads suites.
        run: What finds it.
        merged: Whether the model carries the edits; an audit compares with and without.
    """

    settings: type
    rows: str
    run: Callable[[Subject], Work]
    merged: bool = True

    def reads(self, settings: Any) -> str:
        """The rows that these settings read."""
        shown = getattr(settings, "operation", None) == "backpatch"
        return "pictures" if shown else self.rows or "pairs"


def _circuit(subject: Subject) -> Work:
    told = prepare(subject.rows.pairs, subject.hosted, subject.rows.answers)
    before = scores_of(subject.noted[_SCORES]) if _SCORES in subject.noted else None
    if before is not None:
        yield Progress(stage="attribution", done=1, total=1, message=FOUND_BEFORE)
    work = find_circuit(subject.hosted, told, subject.settings, before)
    found: CircuitReport = yield from _staged(work, _scored)
    with TemporaryDirectory(prefix="tiller-circuit-") as name:
        folder = Path(name)
        shown = f"{subject.hosted.name}, {found.settings.method}"
        if (best := _strongest(found)) is not None:
            draw_circuit(found.graph, found.scores, best, folder / "circuit.png", shown)
        draw_curve(found.found, folder / "curve.png", shown)
        files.write_pt(folder / "importances.pt", found.graph, found.scores)
        left_out = {} if found.graph.edges <= _JSON_EDGES else {"importances.json": _large(found)}
        if not left_out:
            files.write_json(folder / "importances.json", found.graph, found.scores)
        made = _read(folder)
    if found.settings.way == "greedy":
        # MIB's evaluator takes the best edges of a score file and never grows a circuit.
        with TemporaryDirectory(prefix="tiller-memberships-") as name:
            parity = found.settings.quirks
            files.write_grown(Path(name), found.graph, found.scores, parity)
            made["memberships.zip"] = zipped(_read(Path(name)))
    made["importances.safetensors"] = found.importances()
    return Found(report={**found.as_dict(), "left_out": left_out}, files=made)


def _large(found: CircuitReport) -> dict[str, str]:
    return {
        "problem": f"Its {found.graph.edges} edges are more than the {_JSON_EDGES} that are "
        "told one by one.",
        "remedy": "Take importances.pt, which evaluators read too.",
    }


def _strongest(found: CircuitReport) -> Subgraph | None:
    """A circuit to draw: of few items, more where nothing of these hangs together."""
    level, way = found.settings.level, found.settings.way
    for count in _DRAWN:
        best = select(found.graph, found.scores, count, level=level, absolute=True, way=way)
        if bool(best.edges.any()):
            return best
    return None


def _variable(subject: Subject) -> Work:
    hosted = subject.hosted
    told = prepare_swaps(subject.rows.swaps, hosted)
    before = _made(subject)
    if before is not None:
        yield Progress(stage="fitted", done=1, total=1, message=FOUND_BEFORE)
    work = find_variable(
        hosted, told, subject.settings, dictionaries=subject.dictionaries, made=before
    )
    found: VariableReport = yield from _staged(work, _fitted)
    header = {"model": hosted.name, "fingerprint": hosted.fingerprint}
    header["variable"] = found.settings.variable
    with TemporaryDirectory(prefix="tiller-variable-") as name:
        folder = Path(name)
        plot(found, folder / "heatmap.png")
        made = _read(folder)
    made["featurizers.safetensors"] = stored(found.featurizers, header)
    left_out = _unsubmitted(found)
    for number, value in enumerate(subject.settings.toward):
        name = f"toward-{number}.safetensors"
        try:
            made[name] = vector_toward(hosted, told.kept, found, value).data
        except Refusal as refusal:  # what was found is not lost with it
            left_out[name] = _told(refusal)
    if _SUBMITTED not in left_out:
        widths = {unit: width(hosted, unit) for handle, _ in found.featurizers for unit in handle}
        with TemporaryDirectory(prefix="tiller-featurizers-") as name:
            export(found.featurizers, Path(name), widths)
            made[_SUBMITTED] = zipped(_read(Path(name)))
    model_class = type(hosted.modules["lm"]).__name__
    report = {**found.as_dict(), "model_class": model_class, "left_out": left_out}
    save: Save | None = subject.settings.save
    if save is None:
        return Found(report=report, files=made)
    try:
        kept = saved(hosted, told.kept, found, save)
    except Refusal as refusal:  # what was found is not lost with it
        said = f"nothing is saved: {refusal.problem}"
        yield Progress(stage="saving", done=1, total=1, message=said)
        return Found(report={**report, "unsaved": _told(refusal)}, files=made)
    yield Progress(stage="saving", done=1, total=1, message=kept.warning or "")
    return Found(report=report, files=made, saved=kept)


def _told(refusal: Refusal) -> dict[str, str]:
    return {"problem": refusal.problem, "remedy": refusal.remedy}


def _staged(
    work: Generator[Progress, None, T], whole: Callable[[Progress], Stage | None]
) -> Generator[Progress, None, T]:
    """The work's steps; in place of one at which something is whole, what is to be kept of it."""
    try:
        while True:
            step = next(work)
            yield whole(step) or step
    except StopIteration as over:
        return over.value
    finally:
        work.close()


def _scored(step: Progress) -> Stage | None:
    if not isinstance(step, Scored):
        return None
    data = scores_data(step.scores)
    return Stage(stage=step.stage, done=step.done, total=step.total, name=_SCORES, data=data)


def _fitted(step: Progress) -> Stage | None:
    """Learned features are kept; others cost little, and an SAE's are its own."""
    if not isinstance(step, Fitted):
        return None
    kinds = {one.kind for _, some in step.made for one in some}
    if not kinds <= LEARNED - OF_SAE:
        return None
    data = stored(step.made, {})
    return Stage(stage=step.stage, done=step.done, total=step.total, name=_FEATURIZERS, data=data)


def _made(subject: Subject) -> Made | None:
    if _FEATURIZERS not in subject.noted:
        return None
    _, made = restored(subject.noted[_FEATURIZERS])
    device = subject.hosted.device
    return [(handle, tuple(_placed(one, device) for one in some)) for handle, some in made]


def _placed(one: Featurizer, device: torch.device) -> Featurizer:
    if not isinstance(one.features, Directions):
        return one
    return replace(one, features=Directions(rotation=one.features.rotation.to(device)))


def _unsubmitted(found: VariableReport) -> dict[str, dict[str, str]]:
    """Why there is no folder to submit, and what to do; nothing if there is one."""
    every = [featurizer for _, some in found.featurizers for featurizer in some]
    if any("sae" in featurizer.kind for featurizer in every):
        problem = "MIB's evaluator reads no SAEs."
        remedy = 'Ask for another featurizer ("das", "dbm_pca", ...).'
    elif any(featurizer.empty for featurizer in every):
        problem = "A mask chose no feature, which MIB's evaluator takes for all of them."
        remedy = "Name the layers and positions whose masks chose some, or train longer."
    elif (size := submission_bytes(found.featurizers)) > _SUBMITTED_BYTES:
        problem = (
            f"It would have {size / 1e6:.0f} MB, and no more than {_SUBMITTED_BYTES / 1e6:.0f} MB "
            "are kept: each rotation comes twice, each time with a square matrix."
        )
        remedy = (
            "Ask for fewer layers or positions at a time; the cells' folders stand side by side in "
            "one submission. Or take featurizers.safetensors, which has every rotation once, "
            "and write the folder on your own machine with evaluation.variables.stored.restored "
            "and evaluation.variables.submission.export."
        )
    else:
        return {}
    return {_SUBMITTED: {"problem": problem, "remedy": remedy}}


def _gates(subject: Subject) -> Work:
    asked: FeatureGate = subject.settings
    told = prepare_swaps(subject.rows.swaps, subject.hosted)
    found = yield from gate(
        subject.hosted,
        subject.dictionaries[asked.sae],
        told,
        _off_target(subject),
        asked,
        subject.noted,
    )
    with TemporaryDirectory(prefix="tiller-gates-") as name:
        draw_gates(found, Path(name) / "gates.png")
        return Found(report=found.as_dict(), files=_read(Path(name)))


def _off_target(subject: Subject) -> tuple[str, ...]:
    return subject.settings.off_target or tuple(subject.corpus())[:_ELSEWHERE]


def beside(subject: Subject) -> dict[str, str]:
    """Digests of what is read beside the weights, the rows and the edits."""
    if not isinstance(subject.settings, FeatureGate):
        return {}
    dictionary = subject.dictionaries[subject.settings.sae]
    texts = digest_of(canonical(_off_target(subject)).encode())
    return {"sae": dictionary.digest, "off_target": texts}


def _advice(subject: Subject) -> Work:
    asked: LayerAdvice = replace(subject.settings, answers=subject.rows.answers)
    rows = subject.rows
    shown = asked.operation == "backpatch"
    pairs = [row.pair for row in rows.pictures] if shown else rows.pairs
    found = yield from advise(subject.hosted, pairs, asked, subject.noted)
    return Found(report=found.as_dict(), files={"layers.png": advice_png(found)})


def _audit(subject: Subject) -> Work:
    suites = [
        Suite(name=name, pairs=dataset.pairs) for name, dataset in sorted(subject.suites.items())
    ]
    answers = {dataset.answers for dataset in subject.suites.values()}
    whole = "first" if "first" in answers else "whole"
    asked = replace(subject.settings, answers=whole)
    found = yield from audit(subject.hosted, subject.edits, suites, asked, subject.noted)
    return Found(report=found.as_dict(), files={"audit.png": audit_png(found)})


def asked_of(kind: str, params: Mapping[str, Any], seed: int | None = None) -> Any:
    """The settings of a kind, with the places and the metric that a benchmark names.

    Raises:
        UnknownKey, BadRequest: See `settings_of`.
    """
    settings = settings_of(KINDS[kind].settings, params, seed)
    return placed(settings) if isinstance(settings, CausalVariable) else settings


KINDS: Mapping[str, Kind] = {
    "circuit": Kind(settings=Circuit, rows="pairs", run=_circuit),
    "causal_variable": Kind(settings=CausalVariable, rows="swaps", run=_variable),
    "feature_gate": Kind(settings=FeatureGate, rows="swaps", run=_gates),
    "layer_advice": Kind(settings=LayerAdvice, rows="pairs", run=_advice),
    "edit_audit": Kind(settings=EditAudit, rows="", run=_audit, merged=False),
}


def told(kind: str, found: Found, provenance: Mapping[str, Any]) -> Found:
    """The same with `report.json` and `report.md`, numbers that are none told as null."""
    report = plain({"kind": kind, "provenance": dict(provenance), **found.report})
    text = json.dumps(report, indent=1, sort_keys=True)
    pages = {"report.json": text.encode(), "report.md": page(kind, report, provenance).encode()}
    return replace(found, report=report, files={**found.files, **pages})


def plain(value: Any) -> Any:
    """As JSON can say it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    return value


def zipped(named: Mapping[str, bytes], folder: str = "") -> bytes:
    """The files as one archive; the same bytes for the same files."""
    held = BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(named.items()):
            told = zipfile.ZipInfo(f"{folder}{name}", _STAMP)
            archive.writestr(told, data, zipfile.ZIP_DEFLATED)
    return held.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """The files of an archive of ours."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _read(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
