"""A direction that an evaluation found becomes a version that requests steer with by name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, MaxLen

from evaluation.behaviours.swaps import SwapIds
from evaluation.variables.direction import direction, toward
from evaluation.variables.errors import BadStudy, UnknownUnit
from evaluation.variables.featurizers import Featurizer
from evaluation.variables.report import VariableReport
from evaluation.variables.settings import VariableStudy
from evaluation.variables.units import Unit
from models.errors import Refusal
from models.hosted import HostedModel
from service.auth import Principal
from service.errors import ScopeMissing
from service.lineage import TOOL, newest, parent_of
from service.registry import Registry
from service.registry.errors import KindDiffers, UnknownEdit
from service.registry.grammar import checked_alias, checked_name
from service.registry.kinds import VECTOR
from service.registry.records import Job
from service.vectors import neutral_norms, sizes_of
from steerers.control_vectors import Vectors

_DIRECTED = frozenset({"das", "pca", "svd", "dbm_pca", "dbm_svd"})
"""Featurizers whose features are directions."""


@dataclass(frozen=True, kw_only=True)
class Save:
    """Under which name the best unit's direction is kept.

    Attributes:
        name: Of a vector: a new one, or one that gets its next version.
        alias: That points to the version then.
        toward: The value, as answers are written, that the mean move of the swaps sets; None keeps
            a learned direction as it is.
        index: Of the learned direction.
    """

    name: Annotated[str, MaxLen(200)]
    alias: Annotated[str, MaxLen(200)] | None = None
    toward: Annotated[str, MaxLen(200)] | None = None
    index: Annotated[int, Ge(0)] = 0

    def check(self, study: VariableStudy) -> None:
        """Refuse before anything runs what the study cannot come to.

        Raises:
            BadName: The name or the alias is none.
            BadStudy: Its featurizer has no directions, or it looks at heads only.
        """
        with _param("save.name"):
            checked_name(self.name, "a vector")
        with _param("save.alias"):
            if self.alias is not None:
                checked_alias(self.alias)
        kind = study.featurizer.kind
        if self.toward is None and kind not in _DIRECTED:
            raise BadStudy(f"{kind} learns no directions; name a value in toward.", "save.toward")
        if study.units != "sweep" and all(unit.head is not None for unit in study.units):
            raise BadStudy("No vector is added to heads; add a unit of the stream.", "save")


@contextmanager
def _param(path: str) -> Iterator[None]:
    """A refusal names this part of the request."""
    try:
        yield
    except Refusal as refusal:
        refusal.param = path
        raise


def check_saving(registry: Registry, caller: Principal, save: Mapping[str, Any]) -> None:
    """Refuse a caller who may not save so.

    Raises:
        ScopeMissing: An alias moves only for whoever may promote.
        KindDiffers: The name belongs to another kind of thing.
    """
    if save["alias"] is not None and "edits:promote" not in caller.scopes:
        raise ScopeMissing("edits:promote")
    try:
        known = registry.edits.get(caller.tenant, save["name"])
    except UnknownEdit:
        return
    if known.kind != VECTOR:
        with _param("params.save.name"):
            raise KindDiffers(save["name"], known.kind, VECTOR)


def best_of(found: VariableReport) -> tuple[Unit, Featurizer]:
    """The unit of the stream that scored best, with its featurizer.

    Raises:
        UnknownUnit: None was scored.
    """
    units, featurizers = found.featurizers[_best(found)[1]]
    return units[0], featurizers[0]


def _best(found: VariableReport) -> tuple[float, int]:
    """(score, place) of the best handle that is in the stream; of equal ones the first."""
    scored = [
        (cell.value, place)
        for place, cell in enumerate(found.found.cells)
        if cell.value is not None and found.featurizers[place][0][0].head is None
    ]
    if not scored:
        raise UnknownUnit("units", "no unit of the stream was scored.")
    return (min if found.found.lower else max)(scored, key=lambda one: one[0])


def vector_toward(
    hosted: HostedModel, swaps: Sequence[SwapIds], found: VariableReport, value: str
) -> Vectors:
    """A control vector towards the value, at the unit of the stream that scored best."""
    unit, featurizer = best_of(found)
    variable = found.settings.variable
    return toward(hosted, swaps, variable, value, unit=unit, featurizer=featurizer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Saved:
    """A direction on its way into the registry.

    Attributes:
        report: How long it is, by itself and beside the stream, and how its unit scored.
        warning: Where its unit does no better than doing nothing.
    """

    vectors: Vectors
    report: Mapping[str, Any]
    warning: str | None = None


def saved(
    hosted: HostedModel, swaps: Sequence[SwapIds], found: VariableReport, save: Save
) -> Saved:
    """The direction that was asked for, measured.

    Raises:
        BadStudy, NothingKept, NoFeatures, UnknownUnit, BadVector: There is none.
    """
    if save.toward is not None:
        vectors = vector_toward(hosted, swaps, found, save.toward)
    else:
        unit, featurizer = best_of(found)
        vectors = direction(hosted, found.settings.variable, unit, featurizer, save.index)
    norms = neutral_norms(hosted, list(vectors.vectors))
    score, metric = _best(found)[0], found.settings.metric
    report = {**sizes_of(vectors, norms), metric: score, "no_op": _idle(found)}
    if (warning := _warned(found, score)) is not None:
        report["warning"] = warning
    return Saved(vectors=vectors, report=report, warning=warning)


def _idle(found: VariableReport) -> float | None:
    """What doing nothing scores, over all sets; None where it was not measured."""
    return sum(found.no_op.values()) / len(found.no_op) if found.no_op else None


def _warned(found: VariableReport, score: float) -> str | None:
    """What is wrong with a direction whose unit does no better than doing nothing."""
    idle = _idle(found)
    if idle is None or (score < idle if found.found.lower else score > idle):
        return None
    return (
        f"{found.settings.metric} of its unit is {score:.3g}, and doing nothing scores {idle:.3g}: "
        f"nothing says that it sets {found.settings.variable}."
    )


def registered(
    registry: Registry, job: Job, told: Saved, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Keep the direction under its name, and point the alias to it; what the answer says of it.

    One with a warning failed its checks: the alias moves to it only by hand, and by force.
    Done again it comes to the same version, since the bytes are the same.
    """
    save = job.payload["params"]["save"]
    source = {"evaluation": job.payload["id"], "edits": provenance["edits"], "tool": TOOL}
    source["dataset"] = job.payload["dataset"]
    vectors = Vectors({**told.vectors.header, **source}, told.vectors.vectors)
    version = registry.edits.register(
        job.tenant,
        save["name"],
        job.model,
        provenance["fingerprint"],
        vectors.data,
        header=dict(vectors.header),
        report=told.report,
        status="ready" if told.warning is None else "failed_checks",
        actor=job.created_by,
        kind=VECTOR,
        parent=parent_of(vectors.digest, newest(registry, job.tenant, save["name"])),
    )
    alias = save["alias"] if version.status == "ready" else None
    if alias is not None:
        registry.names.move(job.tenant, version.name, alias, version.number, actor=job.created_by)
    warning = {} if told.warning is None else {"warning": told.warning}
    return {
        "name": version.name,
        "version": version.number,
        "digest": version.digest,
        "alias": alias,
        "status": version.status,
        **warning,
        "sites": sorted(vectors.vectors),
        "location": f"/v1/vectors/{version.name}/versions/{version.number}",
    }
