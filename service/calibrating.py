"""Calibrations of back-patching as jobs: asked for, swept between the rows' steps, kept, saved.

A calibration reads the very model that serves, one forward of some plans between two steps of its
rows, so no second copy is held. What is answered is noted every few seconds: a job that is taken up
again asks only what nobody has written down.
"""

import hashlib
import json
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluation.backpatch.calibration import (
    Answered,
    Book,
    CalibrationReport,
    CalibrationSettings,
    calibrate,
    check,
)
from evaluation.backpatch.report import calibration_markdown, heat_map
from evaluation.backpatch.sweep import Place
from models.hosted import HostedModel
from models.progress import Progress
from service.backpatching import kept
from service.calibration_examples import examples_of
from service.datasets import newest
from service.evidence_kinds import Found, plain, unzipped, zipped
from service.jobs import Shares, Task
from service.registry import Registry
from service.registry.errors import UnknownName
from service.registry.kinds import CALIBRATION, STEERING
from service.registry.records import Job, Version
from service.registry.tables import canonical
from service.schema_backpatch import CalibrationBody
from steerers.methods.back_patch import BackPatch

CALIBRATE = "calibrate_backpatch"
ROWS = 16
"""Plans of one forward: the rows that write wait for no more than that."""
_NOTE_SECONDS = 2.0
_MOST_ROUNDS = 20


def _halves(form: str, low: float, high: float) -> dict[str, tuple[float, float]]:
    """Of a form's rounds: each takes about half of what is left."""
    left = [(high - low) * 0.5**turn for turn in range(_MOST_ROUNDS + 1)]
    return {
        f"choosing ({form}), round {turn}": (high - left[turn - 1], high - left[turn])
        for turn in range(1, _MOST_ROUNDS + 1)
    }


_SHARES: Shares = {
    "examples": (0.0, 0.05),
    **_halves("image", 0.05, 0.5),
    "reporting (image)": (0.5, 0.55),
    **_halves("text", 0.55, 0.93),
    "reporting (text)": (0.93, 0.97),
    "the same plan in words": (0.97, 1.0),
}


def payload_of(body: CalibrationBody, examples: str) -> dict[str, Any]:
    """What the job stores: how to search, and the digest of the examples."""
    search = body.search
    return {
        "examples": examples,
        "settings": {
            "places": [[p.source, p.target, p.window] for p in body.plans],
            "windows": list(body.windows),
            "metric": body.metric,
            "positions": body.positions,
            "choosing": body.choosing,
            "first": search.first,
            "keep": search.keep,
            "most": search.answers,
            "control": body.control,
            "resamples": body.resamples,
            "seed": body.seed,
        },
        "save": None if body.save is None else body.save.model_dump(),
        "save_anyway": body.save_anyway,
    }


def settings_of(payload: Mapping[str, Any]) -> CalibrationSettings:
    """As `calibrate` takes them."""
    told = dict(payload["settings"])
    named = (Place(source=s, target=t, window=w) for s, t, w in told.pop("places"))
    places = tuple(dict.fromkeys(named))
    windows = tuple(dict.fromkeys(told.pop("windows")))
    return CalibrationSettings(places=places, windows=windows, rows=ROWS, **told)


def check_payload(payload: Mapping[str, Any], archive: bytes) -> None:
    """UnusableExamples for what the job of this payload would find wrong with its examples."""
    check(examples_of(archive), settings_of(payload))


def identity(payload: Mapping[str, Any], fingerprint: str) -> str:
    """The calibration's id: equal for equal weights, examples, search and release."""
    asked = {key: payload[key] for key in ("examples", "settings")}
    content = {**asked, "fingerprint": fingerprint, "release": version("tiller")}
    return f"calibration-{hashlib.sha256(canonical(content).encode()).hexdigest()[:24]}"


def known(registry: Registry, tenant: str, name: str) -> Version | None:
    """What an equal request found before, if one did."""
    try:
        return newest(registry, tenant, CALIBRATION, name)
    except UnknownName:
        return None


def artifacts(registry: Registry, found: Version) -> dict[str, bytes]:
    """The files of a calibration by name."""
    return unzipped(registry.edits.blob(found.digest))


@dataclass(kw_only=True)
class _Unwritten:
    """Answers of one job that are not noted yet."""

    answers: dict[str, bool] = field(default_factory=dict)
    noted: float = field(default_factory=time.monotonic)


class Calibrations:
    """The calibrations of one host, one at a time."""

    def __init__(self, hosted: HostedModel, registry: Registry) -> None:
        self.hosted, self.registry = hosted, registry
        self._unwritten: dict[str, _Unwritten] = {}  # of the job under way

    @property
    def tasks(self) -> dict[str, Task]:
        """By kind, for a `JobRunner`; none for a model that sees nothing."""
        if self.hosted.family.modality != "vision-language":
            return {}
        task = Task(begin=self.begin, keep=self.keep, end=self.end, shares=_SHARES)
        return {CALIBRATE: task}

    def begin(self, job: Job) -> Generator[Progress, None, CalibrationReport]:
        """Go on from what is noted."""
        book = Book()
        for note in self.registry.notes.of(job.id):
            book.answers |= note["answers"]
        self._unwritten = {job.id: _Unwritten()}
        examples = examples_of(self.registry.edits.blob(job.payload["examples"]))
        return calibrate(self.hosted, examples, settings_of(job.payload), book)

    def keep(self, job: Job, step: Progress) -> None:
        """Note what was answered, every few seconds."""
        if not isinstance(step, Answered):
            return
        waiting = self._unwritten.setdefault(job.id, _Unwritten())
        waiting.answers |= step.answers
        if waiting.answers and time.monotonic() - waiting.noted > _NOTE_SECONDS:
            self.registry.notes.add(job.id, job.worker or "", {"answers": waiting.answers})
            self._unwritten[job.id] = _Unwritten()

    def end(self, job: Job, report: CalibrationReport) -> dict[str, Any]:
        """Keep the report and its files, save the plan; what the job comes to."""
        found = _pages(report, _provenance(job, self.hosted))
        version_ = self.registry.edits.register(
            job.tenant,
            job.payload["id"],
            job.model,
            self.hosted.fingerprint,
            zipped(found.files),
            header={"examples": job.payload["examples"], "artifacts": sorted(found.files)},
            report=found.report,
            actor=job.created_by,
            kind=CALIBRATION,
            job=job.id,
        )
        self._unwritten.pop(job.id, None)
        saved = save(self.registry, job.tenant, job.created_by, version_, job.payload)
        self.registry.notes.forget(job.id, job.worker or "")
        return result_of(version_, saved)


def save(
    registry: Registry, tenant: str, actor: str, found: Version, payload: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Keep the plan as a preset if that was asked for and it helps, or anyway; None if not asked.

    Raises:
        BadName, KindDiffers: The name cannot be a preset's.
    """
    asked, report = payload["save"], found.report or {}
    if asked is None:
        return None
    if not report["helps"] and not payload["save_anyway"]:
        return {"saved": False, "reason": report["verdict"]}
    content = kept(_plan(report), gained(found))
    preset = registry.presets.put(
        tenant,
        STEERING,
        asked["name"],
        found.model,
        found.fingerprint,
        content,
        actor=actor,
        report={"calibration": content["calibration"]},
    )
    told = {
        "saved": True,
        "preset": preset.name,
        "version": preset.number,
        "digest": preset.digest,
        "location": f"/v1/presets/{preset.name}/versions/{preset.number}",
    }
    if asked["alias"] is not None:
        registry.names.move(tenant, preset.name, asked["alias"], preset.number, actor=actor)
        told["alias"] = asked["alias"]
    return told


def _plan(report: Mapping[str, Any]) -> BackPatch:
    place = report["image"]["place"]
    return BackPatch(**place, positions=report["settings"]["positions"])


def gained(found: Version) -> dict[str, Any]:
    """What a preset says of its plan: gain with interval, control, data."""
    report = found.report or {}
    text = report["text"]
    return {
        "calibration": found.name,
        "helps": report["helps"],
        "verdict": report["verdict"],
        "metric": report["settings"]["metric"],
        "plain": report["image"]["plain"],
        "patched": report["image"]["patched"],
        "gain": report["image"]["gain"],
        "control": None if text is None else text["gain"],
        "same_in_text": report["same_in_text"],
        "gap": report["gap"],
        "data": f"sha256:{found.header['examples']}",
        "fingerprint": found.fingerprint,
    }


def result_of(found: Version, saved: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the job of a calibration comes to."""
    report = found.report or {}
    plan = {**report["image"]["place"], "positions": report["settings"]["positions"]}
    return {
        "calibration": found.name,
        "helps": report["helps"],
        "verdict": report["verdict"],
        "backpatch": plan,
        "gain": report["image"]["gain"],
        "control": None if report["text"] is None else report["text"]["gain"],
        "preset": saved,
        "artifacts": found.header["artifacts"],
        "location": f"/v1/backpatch/calibrations/{found.name}",
    }


def _pages(report: CalibrationReport, provenance: Mapping[str, Any]) -> Found:
    """The report as JSON and Markdown, and a heat map for each form."""
    sides = [side for side in (report.image, report.text) if side is not None]
    with TemporaryDirectory(prefix="tiller-calibration-") as name:
        drawn = dict[str, bytes]()
        for side in sides:
            file = Path(name) / f"grid-{side.form}.png"
            heat_map(side, report.layers, file)
            drawn[file.name] = file.read_bytes()
    told = plain({**report.as_dict(), "provenance": dict(provenance)})
    pages = {
        "report.json": json.dumps(told, indent=1, sort_keys=True).encode(),
        "report.md": calibration_markdown(report).encode(),
    }
    return Found(report=told, files={**drawn, **pages})


def _provenance(job: Job, hosted: HostedModel) -> dict[str, Any]:
    return {
        "model": hosted.name,
        "fingerprint": hosted.fingerprint,
        "dtype": str(hosted.dtype).removeprefix("torch."),
        "device": str(hosted.device),
        "examples": job.payload["examples"],
        "versions": {name: version(name) for name in ("tiller", "torch", "transformers")},
    }
