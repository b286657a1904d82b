"""What an evaluation found, in the layout of MIB's submissions: one cell's folder as a zip."""

import json
import re
from collections.abc import Mapping
from typing import Any

from evaluation.variables.objective import Coefficients
from evaluation.variables.submission import told_coefficients
from service.errors import BadRequest
from service.evidence_errors import NoSuchArtifact
from service.evidence_kinds import unzipped, zipped
from service.evidence_summaries import rows_of
from service.registry.records import Version
from service.schema_evaluations import ExportBody

_SUBMITTED = {"mib-circuit": "importances.pt", "mib-causal-variable": "featurizers.zip"}
_FORMATS = {"circuit": "mib-circuit", "causal_variable": "mib-causal-variable"}
_TASKS: Mapping[str, Mapping[str, str]] = {
    "mib-circuit": {
        "ioi": "ioi",
        "mcqa": "mcqa",
        "copycolors_mcqa": "mcqa",
        "arc_easy": "arc-easy",
        "arc_challenge": "arc-challenge",
        "arithmetic-addition": "arithmetic-addition",
        "arithmetic_addition": "arithmetic-addition",
        "arithmetic-subtraction": "arithmetic-subtraction",
        "arithmetic_subtraction": "arithmetic-subtraction",
    },
    "mib-causal-variable": {
        "ioi": "ioi_task",
        "mcqa": "4_answer_MCQA",
        "copycolors_mcqa": "4_answer_MCQA",
        "arc_easy": "ARC_easy",
        "arithmetic-addition": "arithmetic",
        "arithmetic_addition": "arithmetic",
        "arithmetic-subtraction": "arithmetic",
        "arithmetic_subtraction": "arithmetic",
        "ravel": "ravel_task",
    },
}
"""By format and by what rows are of, the task as submissions call it."""
_COEFFICIENTS = "ioi_coefficients.json"
_SENT = "sent"
"""Rows of a caller's own may be of any task."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


def exported(found: Version, made: Mapping[str, bytes], body: ExportBody) -> tuple[str, bytes]:
    """The cell's name, and the zip that holds its folder.

    Beside the folder of the indirect object's task stand the coefficients of the logit difference.

    Raises:
        BadRequest: The format is of another kind, or the rows are of another task.
        NoSuchArtifact: The evaluation has nothing to export in that format: why, and what to do.
    """
    _check_asked(found, body)
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


def _check_asked(found: Version, body: ExportBody) -> None:
    kind = found.header["kind"]
    if _FORMATS.get(kind) != body.format:
        own = _FORMATS.get(kind)
        raise BadRequest(
            f"{found.name} is a {kind}, which is no {body.format}.",
            remedy=f'Ask for format "{own}".' if own else "MIB has no submissions of that kind.",
            param="format",
        )
    made = (found.report or {})["provenance"]["datasets"].values()
    for rows in sorted({rows_of(one) for one in made} - {_SENT}):
        task = _TASKS[body.format].get(rows)
        if _plain(body.task) != _plain(task or ""):
            told = f'Export it as task "{task}".' if task else "Submissions have no such task."
            raise BadRequest(
                f"The rows of {found.name} are of {rows}, not of {body.task}.",
                remedy=told,
                param="task",
            )


def _plain(task: str) -> str:
    return task.replace("_", "-").lower()


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
