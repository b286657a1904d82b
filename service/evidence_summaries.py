"""One line about an evaluation or a data set, for lists: what was asked of what, and what came out.

The main number of a circuit is its CMD; CPR never stands alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from service.registry.records import Newest

Told = Mapping[str, Any]


def summary_of(kind: str, report: Told) -> dict[str, Any]:
    """What a list tells of a finished evaluation; kept beside its files."""
    asked, main = _KINDS[kind](report)
    made = report["provenance"]["datasets"].values()
    return {
        "rows": sorted({rows_of(one) for one in made}),
        "edits": list(report["provenance"]["edits"]),
        "asked": asked,
        "main": main,
    }


def rows_of(made: Told) -> str:
    """The task that rows were drawn for or published for; `sent` for a caller's own."""
    return made.get("generator") or made.get("task") or "sent"


def evaluation_row(found: Newest) -> dict[str, Any]:
    """One evaluation in a list."""
    return {
        "object": "evaluation",
        "id": found.name,
        "kind": found.header["kind"],
        "model": found.model,
        "state": "succeeded",
        **_NOTHING,
        **found.header.get("summary", {}),
        "job": found.job,
        "created_at": found.created_at,
        "created_by": found.created_by,
        "location": f"/v1/evaluations/{found.name}",
    }


_NOTHING: Told = {"rows": [], "edits": [], "asked": {}, "main": None}
"""Of evaluations that were kept before summaries were."""


def dataset_row(found: Newest) -> dict[str, Any]:
    """One data set in a list."""
    made = found.header["made"]
    return {
        "object": "dataset",
        "id": found.name,
        "model": found.model,
        "rows": rows_of(made),
        "vocabulary": made.get("vocabulary"),
        "n": found.header["n"],
        "kept": found.header.get("kept", {}),
        "answers": found.header["answers"],
        "created_at": found.created_at,
        "created_by": found.created_by,
        "location": f"/v1/datasets/{found.name}",
    }


def _some(told: Told, *keys: str) -> dict[str, Any]:
    return {key: told[key] for key in keys}


def _main(name: str, value: Any) -> dict[str, Any]:
    return {"name": name, "value": value}


def _circuit(report: Told) -> tuple[Told, Told]:
    asked = _some(report["settings"], "method", "level")
    if report["inconclusive"]:
        return asked, _main("inconclusive", report["inconclusive"])
    return asked, _main("cmd", report["cmd"])


def _variable(report: Told) -> tuple[Told, Told]:
    settings, best = report["settings"], report["best"]
    asked = {"variable": report["variable"], "featurizer": settings["featurizer"]["kind"]}
    value = None if best is None else best["value"]
    return {**asked, "units": [] if best is None else best["units"]}, _main(report["metric"], value)


def _gates(report: Told) -> tuple[Told, Told]:
    settings = report["settings"]
    asked = _some(settings, "sae", "variable", "features")
    return asked, _main("verdicts", _counted(gate["verdict"] for gate in report["gates"]))


def _advice(report: Told) -> tuple[Told, Told]:
    return _some(report["settings"], "operation"), _main("recommended", report["recommended"])


def _audit(report: Told) -> tuple[Told, Told]:
    return {"suites": [one["name"] for one in report["suites"]]}, _main(
        "verdict", report["verdict"]
    )


def _counted(verdicts: Iterable[str]) -> dict[str, int]:
    return dict(Counter(verdicts).most_common())


_KINDS: Mapping[str, Callable[[Told], tuple[Told, Told]]] = {
    "circuit": _circuit,
    "causal_variable": _variable,
    "feature_gate": _gates,
    "layer_advice": _advice,
    "edit_audit": _audit,
}
