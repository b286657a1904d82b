"""Data sets of prompts and pictures: sent row by row, published, or drawn; kept by content."""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from evaluation.behaviours.attributes import swaps_of
from evaluation.behaviours.errors import UnreadableRows
from evaluation.behaviours.pairs import Dropped, Pair, prepare
from evaluation.behaviours.public import PAIRED_TASKS, asking, public_pairs, public_swaps
from evaluation.behaviours.swaps import SwapText, prepare_swaps
from evaluation.tracing_pictures import PicturePair, prepare_pictures
from models.hosted import HostedModel
from models.language import Language
from service.errors import TooMuch
from service.pictures_in import Pictures, check_pixels, decoded, from_data_uri, pixels_of
from service.registry import Registry
from service.registry.blobs import digest_of
from service.registry.errors import UnknownEdit, UnknownName
from service.registry.kinds import DATASET
from service.registry.records import Version
from service.registry.tables import canonical
from service.schema_evaluations import DatasetBody, SwapRow
from service.settings import Limits
from service.vocabularies import vocabularies

FORMAT = 1
_REASONS, _REASON = 20, 200
"""Reasons for which published rows fell out that are told, and characters of each."""


@dataclass(frozen=True, kw_only=True)
class PictureText:
    """A row of pictures as it is kept: both as base64."""

    question: str
    clean: str
    corrupted: str
    correct: str
    incorrect: str

    @property
    def pair(self) -> PicturePair:
        """Its pictures, decoded when somebody looks."""
        return PicturePair(
            question=self.question,
            clean=Pictures([base64.b64decode(self.clean)], "pictures"),
            corrupted=Pictures([base64.b64decode(self.corrupted)], "pictures"),
            correct=self.correct,
            incorrect=self.incorrect,
        )


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Rows for circuits (`pairs`), for variables (`swaps`), for models that see, or several.

    Attributes:
        answers: Whether answers are one token, or known by their first.
        made: By which generator, or of which public task; empty for rows that were sent.
    """

    pairs: tuple[Pair, ...]
    swaps: tuple[SwapText, ...]
    answers: Literal["whole", "first"]
    made: Mapping[str, Any]
    pictures: tuple[PictureText, ...] = ()

    @property
    def data(self) -> bytes:
        """As it is kept."""
        return canonical({"format": FORMAT, **asdict(self)}).encode()

    @classmethod
    def read(cls, data: bytes) -> "Dataset":
        """From such bytes."""
        told = json.loads(data)
        return cls(
            pairs=tuple(map(_pair, told["pairs"])),
            swaps=tuple(_swap(row) for row in told["swaps"]),
            answers=told["answers"],
            made=told["made"],
            pictures=tuple(PictureText(**row) for row in told.get("pictures", ())),
        )

    def first(self, n: int | None) -> "Dataset":
        """So many rows of each."""
        return Dataset(
            pairs=self.pairs[:n],
            swaps=self.swaps[:n],
            answers=self.answers,
            made=self.made,
            pictures=self.pictures[:n],
        )


def _pair(row: Mapping[str, Any]) -> Pair:
    return Pair(**{**row, "alike": tuple(row["alike"])})


def _swap(row: Mapping[str, Any]) -> SwapText:
    places = {name: (here, there) for name, (here, there) in row["positions"].items()}
    signs = {name: (token, position) for name, (token, position) in row["signs"].items()}
    return SwapText(**{**row, "positions": places, "signs": signs})


def dataset_of(body: DatasetBody, limits: Limits | None = None) -> Dataset:
    """What a request asks for, not yet kept.

    Raises:
        UnknownSet, UnknownVariable: The generator has none of that name.
        UnreadableRows: Rows that are not the task's, or none of which can be used.
        BadPicture, NotAnImage, TooMuch: A picture, by its key.
    """
    if body.task is not None:
        asked = (body.task, body.rows, body.pair_set, body.sets, body.variable, body.answers)
        try:
            return published(*asked)
        except UnreadableRows as refusal:
            refusal.param = "rows"
            raise
    if body.generator is None:
        pairs = tuple(_pair(row.model_dump()) for row in body.pairs)
        swaps = tuple(_sent(row) for row in body.swaps)
        shown = tuple(_shown(body, limits or Limits()))
        return Dataset(pairs=pairs, swaps=swaps, answers=body.answers, made={}, pictures=shown)
    behaviour = vocabularies()[body.vocabulary].behaviours()[body.generator]
    sets = tuple(body.sets) or None
    if body.variable is not None and body.generator == "ravel":
        swaps = swaps_of(behaviour, body.variable, body.n, body.seed, sets)
    else:
        swaps = behaviour.swaps(body.n, body.seed, sets)
    keys = ("generator", "vocabulary", "n", "seed", "sets", "variable", "pair_set")
    return Dataset(
        pairs=tuple(behaviour.pairs(body.n, body.seed, body.pair_set)),
        swaps=tuple(swaps),
        answers=body.answers,
        made={key: getattr(body, key) for key in keys},
    )


def published(
    task: str,
    rows: Sequence[Mapping[str, Any]],
    pair_set: str | None = None,
    sets: Sequence[str] = (),
    variable: str | None = None,
    answers: Literal["whole", "first"] = "whole",
) -> Dataset:
    """Rows of a public task as pairs and as interchanges.

    What has no such counterfactual falls out: `made` tells how many rows, and why.

    Raises:
        UnreadableRows: Rows that are not the task's, or none of which can be used.
        UnknownVariable: No row asks for it.
    """
    some = rows if variable is None else asking(rows, variable)
    paired = task in PAIRED_TASKS
    pairs = public_pairs(task, some, pair_set) if paired else None
    swaps = public_swaps(task, some, tuple(sets) or None)
    left = {"swaps": swaps.dropped, **({} if pairs is None else {"pairs": pairs.dropped})}
    if not swaps.swaps and (pairs is None or not pairs.pairs):
        reasons = [row.reason for some in left.values() for row in some]
        raise UnreadableRows(task, f"none of {len(rows)} rows can be used: {reasons[0]}")
    return Dataset(
        pairs=() if pairs is None else pairs.pairs,
        swaps=swaps.swaps,
        answers=answers,
        made={
            "task": task,
            "rows": len(rows),
            "pair_set": pair_set,
            "sets": list(sets),
            "variable": variable,
            "left_out": {name: _reasons(some) for name, some in left.items()},
        },
    )


def _reasons(dropped: Sequence[Dropped]) -> dict[str, int]:
    """How many rows fell out for which reason: the commonest ones."""
    return dict(Counter(row.reason[:_REASON] for row in dropped).most_common(_REASONS))


def _shown(body: DatasetBody, limits: Limits) -> Iterator[PictureText]:
    """Rows with pictures: each is looked at and decoded once before it is kept."""
    total = pixels = 0
    for number, row in enumerate(body.pictures):
        told = row.model_dump()
        for key in ("clean", "corrupted"):
            param = f"pictures[{number}].{key}"
            data = from_data_uri(told[key], param, limits)
            check_pixels(pixels_of(data, param), limits.input_pixels, param)
            pixels += pixels_of(data, param)
            if pixels > limits.dataset_pixels:
                raise TooMuch("pictures", pixels, limits.dataset_pixels, " pixels together")
            decoded(data, param)
            total += len(data)
            if total > limits.calibration_bytes:
                raise TooMuch("pictures", total, limits.calibration_bytes, " bytes")
            told[key] = base64.b64encode(data).decode()
        yield PictureText(**told)


def _sent(row: SwapRow) -> SwapText:
    """A row of a request: positions are texts, whose last character's token is meant."""
    told = row.model_dump()
    told["positions"] = {
        name: (_end(row.base, here), _end(row.counterfactual, there))
        for name, (here, there) in row.positions.items()
    } | {"last_token": (None, None)}
    told["signs"] = {name: (token, position) for name, (token, position) in row.signs.items()}
    return SwapText(**told)


def _end(prompt: str, part: str) -> int:
    """The last character of the part's first occurrence; past the end where it does not occur."""
    at = prompt.find(part)
    return len(prompt) if at < 0 or not part else at + len(part) - 1


def fitting(hosted: HostedModel, dataset: Dataset) -> dict[str, Any]:
    """How many rows a model of a language family can use, and why it cannot use the others."""
    assert isinstance(hosted.family, Language)  # noqa: S101 - its host says so
    pairs = prepare(dataset.pairs, hosted, dataset.answers)
    swaps = prepare_swaps(dataset.swaps, hosted)
    told = {
        "pairs": _counted(len(pairs.kept), pairs.dropped),
        "swaps": _counted(len(swaps.kept), swaps.dropped),
    }
    if dataset.pictures:
        shown, dropped = prepare_pictures(hosted, [row.pair for row in dataset.pictures])
        told["pictures"] = _counted(len(shown), dropped)
    return told


def _counted(kept: int, dropped: tuple[Dropped, ...]) -> dict[str, Any]:
    return {"kept": kept, "dropped": [asdict(row) for row in dropped]}


def keep(  # noqa: PLR0913, PLR0917 - what a version is made of
    registry: Registry,
    tenant: str,
    model: str,
    fingerprint: str,
    dataset: Dataset,
    report: Mapping[str, Any],
    actor: str,
) -> Version:
    """Keep a data set under a name that is its content's and its model's.

    What the report says of its rows is of that model's tokens alone.
    """
    data = dataset.data
    of = canonical([model, fingerprint, digest_of(data)]).encode()
    header = {
        "n": max(len(dataset.pairs), len(dataset.swaps), len(dataset.pictures)),
        "answers": dataset.answers,
        "made": dict(dataset.made),
        "kept": {rows: counted["kept"] for rows, counted in report.items()},
    }
    return registry.edits.register(
        tenant,
        f"dataset-{digest_of(of)[:20]}",
        model,
        fingerprint,
        data,
        header=header,
        report=report,
        actor=actor,
        kind=DATASET,
    )


def find(registry: Registry, tenant: str, name: str) -> Version:
    """The data set of that id; UnknownName if there is none."""
    return newest(registry, tenant, DATASET, name)


def newest(registry: Registry, tenant: str, kind: str, name: str) -> Version:
    """The newest version of a name of that kind; UnknownName if there is none."""
    try:
        known = registry.edits.get(tenant, name)
    except UnknownEdit:
        raise UnknownName(kind, name) from None
    if known.kind != kind:
        raise UnknownName(kind, name)
    return registry.edits.version(tenant, name, known.versions)
