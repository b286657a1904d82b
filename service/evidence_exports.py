"""What an evaluation found, in the layout of MIB's submissions: one cell's folder as a zip."""

import json
import re
from collections.abc import Mapping
from typing import Any

from evaluation.variables.objective import Coefficients
from evaluation.variables.submission import told_coefficients
from service.evidence_errors import NoSuchArtifact
from service.evidence_kinds import unzipped, zipped
from service.registry.records import Version
from service.schema_evaluations import ExportBody

_SUBMITTED = {"mib-circuit": "importances.pt", "mib-causal-variable": "featurizers.zip"}
_COEFFICIENTS = "ioi_coefficients.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def exported(found: Version, made: Mapping[str, bytes], body: ExportBody) -> tuple[str, bytes]:
    """The cell's name, and the zip that holds its folder.

    Beside the folder of the indirect object's task stand the coefficients of the logit difference.

    Raises:
        NoSuchArtifact: The evaluation has nothing to export in that format: why, and what to do.
    """
    source = _SUBMITTED[body.format]
    if source not in made:
        raise NoSuchArtifact(found.name, source, sorted(made), left_out(found, source))
    if body.format == "mib-circuit":
        # Results are split at underscores: none may stand in a task or a model.
        model = _UNSAFE.sub("-", body.model or found.model)
        folder = f"{body.task.replace('_', '-')}_{model.replace('_', '-')}"
        return folder, zipped(circuit_submission(made), f"{folder}/")
    report = found.report or {}
    folder = f"{body.task}_{report['model_class']}_{_UNSAFE.sub('_', report['variable'])}"
    files = {f"{folder}/{name}": data for name, data in unzipped(made[source]).items()}
    return folder, zipped({**files, **_beside(report)})


def circuit_submission(made: Mapping[str, bytes]) -> dict[str, bytes]:
    """What MIB's evaluator is given of a circuit's files: one of scores, or nine memberships."""
    if "memberships.zip" in made:
        return unzipped(made["memberships.zip"])
    return {"importances.pt": made["importances.pt"]}


def left_out(found: Version, file: str) -> Mapping[str, str] | None:
    """Why a file of the evaluation's kind was left out, and what to do; None if nobody said."""
    return (found.report or {}).get("left_out", {}).get(file)


def _beside(report: Mapping[str, Any]) -> dict[str, bytes]:
    if (fitted := report.get("coefficients")) is None:
        return {}
    told = told_coefficients(Coefficients(**fitted), report["model_class"])
    return {_COEFFICIENTS: json.dumps(told, indent=1).encode() + b"\n"}
