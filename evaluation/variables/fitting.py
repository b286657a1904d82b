"""From settings to featurizers: made, fitted to rows, or learned; one for each unit of a handle."""

import hashlib
from collections.abc import Generator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.variables.errors import BadStudy
from evaluation.variables.featurizers import FULL, Codes, Coordinates, Directions, Featurizer
from evaluation.variables.learning import Das, Learner, Mask
from evaluation.variables.objective import Objective
from evaluation.variables.principal import principal
from evaluation.variables.settings import LEARNED, OF_SAE, Featurizing, VariableStudy
from evaluation.variables.training import Pupil, train
from evaluation.variables.trials import Trials
from evaluation.variables.units import Handle, Unit, width
from models.hosted import HostedModel
from models.progress import Progress
from steerers.dictionary import Dictionary

_DIRECTIONS = 16


def fitted(
    trials: Trials,
    handles: Sequence[Handle],
    settings: VariableStudy,
    objective: Objective,
    dictionaries: Mapping[Unit, Dictionary],
) -> Generator[Progress, None, list[tuple[Featurizer, ...]]]:
    """Per handle a featurizer for each unit.

    Args:
        trials: Rows to fit and train on.
        handles: What is swapped.
        settings: Which features, and how they are trained.
        objective: What is trained.
        dictionaries: By unit, of kinds that need one.
    """
    asked = settings.featurizer
    if asked.kind not in LEARNED:
        return [tuple(_made(trials, u, asked, dictionaries) for u in handle) for handle in handles]
    pupils = [
        Pupil(handle, tuple(_learner(trials, u, settings, dictionaries) for u in handle))
        for handle in handles
    ]
    yield from train(trials, pupils, objective, settings.recipe, settings.seed)
    return [tuple(learner.finished() for learner in pupil.learners) for pupil in pupils]


def dictionaries_of(
    hosted: HostedModel,
    units: Sequence[Unit],
    asked: Featurizing,
    known: Mapping[str, Dictionary],
) -> dict[Unit, Dictionary]:
    """The SAE of each unit that has one, on the model's device; nothing for other kinds.

    Raises:
        BadStudy: No SAE was named, one is not known, two read one site, or one has not the
            features.
        UnknownSite, WrongDictionary: One does not fit the model.
    """
    if asked.kind not in OF_SAE:
        return {}
    if not asked.saes:
        raise BadStudy(f"{asked.kind} needs at least one SAE.", "featurizer")
    if missing := [name for name in asked.saes if name not in known]:
        raise BadStudy(f"There is no SAE {missing[0]!r}.", "featurizer")
    by_site: dict[str, Dictionary] = {}
    for name in asked.saes:
        known[name].check(hosted)
        if max(asked.features, default=0) >= known[name].features:
            raise BadStudy(f"{name} has features 0 to {known[name].features - 1}.", "features")
        site = known[name].site
        if site in by_site:
            raise BadStudy(
                f"{by_site[site].id} and {name} both read {site}: one of them at a time.",
                "featurizer.saes",
            )
        by_site[site] = known[name].to(hosted.device)
    return {u: by_site[u.site] for u in units if u.head is None and u.site in by_site}


def directions(asked: Featurizing, wide: int) -> int:
    """How many directions are asked for in a unit of that width; a mask may choose fewer."""
    if asked.n is not None:
        return asked.n
    return max(1, min(_DIRECTIONS, wide // 2)) if asked.kind == "das" else wide


def seed_of(seed: int, name: str) -> int:
    """A seed of its own for each name: what is drawn does not depend on its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")


def _made(
    trials: Trials, unit: Unit, asked: Featurizing, dictionaries: Mapping[Unit, Dictionary]
) -> Featurizer:
    match asked.kind:
        case "full":
            return FULL
        case "sae":
            features = Codes(dictionary=dictionaries[unit])
            return Featurizer(kind="sae", features=features, chosen=asked.features or None)
        case _:
            return Featurizer(kind=asked.kind, features=_principal(trials, unit, asked))


def _learner(
    trials: Trials,
    unit: Unit,
    settings: VariableStudy,
    dictionaries: Mapping[Unit, Dictionary],
) -> Learner:
    asked, device = settings.featurizer, trials.hosted.device
    wide = width(trials.hosted, unit)
    match asked.kind:
        case "das":
            return Das(wide, directions(asked, wide), seed_of(settings.seed, unit.name), device)
        case "dbm":
            return Mask("dbm", Coordinates(count=wide), device)
        case "dbm_sae":
            return Mask("dbm_sae", Codes(dictionary=dictionaries[unit]), device)
        case _:
            return Mask(asked.kind, _principal(trials, unit, asked), device)


def _principal(trials: Trials, unit: Unit, asked: Featurizing) -> Directions:
    own, there = trials.table.columns[unit.position]
    both = [_rows(trials.bases([unit])[unit], own), _rows(trials.sources([unit])[unit], there)]
    return principal(torch.cat(both), standardise=asked.kind in {"pca", "dbm_pca"}, n=asked.n)


def _rows(values: Float[Tensor, "rows k d"], columns: Tensor) -> Float[Tensor, "samples d"]:
    """The tokens that rows really have."""
    return values[columns >= 0]
