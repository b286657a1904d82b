"""What a request's `steering` becomes: one patch, and a report of what was chosen.

The steerers decide; here stands what they ask for: the host's dictionaries with scores and labels
from the registry, directions from their blobs, and forwards on the thread that owns the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from engines.store import DigestStore
from models.errors import WrongBase
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch
from service.dictionaries import Dictionaries
from service.orders import SteeringOrder, TextOrder, VectorOrder
from service.owned import at_once, drained
from service.patience import ENDLESS, Patience
from service.registry import Registry
from service.vectors import neutral_norms
from steerers.control_vectors import Vectors
from steerers.dictionary import Dictionary
from steerers.methods.control_vector import ControlVector, Direction
from steerers.methods.sae import SAE, SteeredFeature
from steerers.planned import Bounds, Planned, Request
from steerers.score import Neutral
from steerers.shelf import Shelf, at_prompt
from steerers.whole import whole


@dataclass(frozen=True, kw_only=True)
class Steered:
    """The plan for one prompt.

    Attributes:
        reports: One or more per entry of the order.
        whole: Per site what all entries together come to.
        strong: What the whole warns of.
    """

    patch: Patch = field(default_factory=Patch)
    reports: tuple[Mapping[str, Any], ...] = ()
    whole: tuple[Mapping[str, Any], ...] = ()
    strong: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of all entries, and of the whole."""
        told = (w for report in self.reports for w in report["warnings"])
        return tuple(dict.fromkeys((*told, *self.strong)))


class Steering:
    """Plans on worker threads, which wait; never on the owner thread.

    Args:
        dictionaries: The host's, with scores and lenses.
        registry: Keeps labels, activations and directions.
        store_bytes: For directions.
        bounds: How strong a change may be.
    """

    def __init__(
        self, dictionaries: Dictionaries, registry: Registry, store_bytes: int, bounds: Bounds
    ) -> None:
        self.dictionaries, self.registry, self.bounds = dictionaries, registry, bounds
        self.vectors = DigestStore(registry.edits.blob, Vectors.read, store_bytes)
        self._norms: dict[str, float] = {}

    @property
    def hosted(self) -> HostedModel:
        """The model."""
        return self.dictionaries.hosted

    def plan(self, order: TextOrder, ids: Sequence[int], patience: Patience = ENDLESS) -> Steered:
        """What the order's steering means for a row that reads these tokens.

        Raises:
            Refusal: What a steerer, a dictionary or a direction cannot do, as it says itself.
            Left: Nobody waits for it any more.
        """
        family = self.hosted.family
        assert isinstance(family, Language)  # noqa: S101 - its host says so
        request = Request(
            prompt=tuple(ids), special=family.special_ids(self.hosted), bounds=self.bounds
        )
        asking = _Asking(tenant=order.tenant, request=request, patience=patience)
        parts, reports = list[Planned](), list[Mapping[str, Any]]()
        for entry in order.steering:
            came = {} if entry.preset is None else {"preset": entry.preset.as_dict()}
            self._check_base(entry)
            for planned in self._entry(entry, asking):
                parts.append(planned)
                reports.append({**came, **planned.report})
        found = whole(parts, len(ids), self.bounds)
        return Steered(
            patch=found.patch, reports=tuple(reports), whole=found.sites, strong=found.warnings
        )

    def _check_base(self, entry: SteeringOrder) -> None:
        preset = entry.preset
        if preset is not None and preset.fingerprint != self.hosted.fingerprint:
            name = f"{preset.name}@{preset.version}"
            raise WrongBase(name, preset.fingerprint, self.hosted.name, self.hosted.fingerprint)

    def _entry(self, entry: SteeringOrder, asking: "_Asking") -> list[Planned]:
        planned = []
        if entry.features or entry.concept is not None:
            features = tuple(
                SteeredFeature(sae=f.sae, feature=f.feature, strength=f.strength)
                for f in entry.features
            )
            method = SAE(features=features, **_said(entry, SAE, "features"))
            shelves = self._shelves(entry, asking)
            planned.append(method.plan(self.hosted, shelves, asking.request))
        return [*planned, *(self._added(entry, use, asking) for use in entry.vectors)]

    # --- features --------------------------------------------------------------------------------

    def _shelves(self, entry: SteeringOrder, asking: "_Asking") -> dict[str, Shelf]:
        """The dictionaries that the entry means, by the names that it uses."""
        named = {f.sae for f in entry.features} | ({entry.sae} if entry.sae else set())
        found = {name: self.dictionaries.find(name, "steering") for name in sorted(named)}
        return {n: self._shelf(d, asking) for n, d in (found or self.dictionaries.known).items()}

    def _shelf(self, dictionary: Dictionary, asking: "_Asking") -> Shelf:
        known, tenant, patience = self.dictionaries, asking.tenant, asking.patience
        return Shelf(
            dictionary=dictionary,
            neutral=lambda: known.neutral(dictionary, patience=patience),
            at_prompt=lambda ids: self._at_prompt(dictionary, ids, patience),
            scores=lambda features: known.scores(dictionary, features, patience=patience),
            index=lambda: known.lens(dictionary, patience).index,
            labels=lambda concept: known.labels(dictionary, tenant, concept),
            max_activation=lambda feature: self._strongest(dictionary, tenant, feature),
        )

    def _at_prompt(self, dictionary: Dictionary, ids: Sequence[int], patience: Patience) -> Neutral:
        read = at_once(lambda: at_prompt(self.hosted, dictionary, ids))
        return drained(self.dictionaries.background, read, patience)

    def _strongest(self, dictionary: Dictionary, tenant: str, feature: int) -> float | None:
        found = self.registry.snippets.of(
            tenant, self.hosted.fingerprint, dictionary.digest, [feature]
        )
        return found[feature].strongest if feature in found else None

    # --- directions ------------------------------------------------------------------------------

    def _added(self, entry: SteeringOrder, use: VectorOrder, asking: "_Asking") -> Planned:
        vectors = self.vectors.get(use.digest)
        base = vectors.header.get("base", {}).get("fingerprint", "")
        if base != self.hosted.fingerprint:
            raise WrongBase(use.label, base, self.hosted.name, self.hosted.fingerprint)
        method = ControlVector(
            vector=use.label,
            strength=use.strength,
            **_said(entry, ControlVector, "vector", "strength"),
        )
        norms = self._stream_norms(list(vectors.vectors), asking.patience)
        direction = Direction(vectors=vectors, stream_norms=norms)
        return method.plan(self.hosted, {use.label: direction}, asking.request)

    def _stream_norms(self, sites: Sequence[str], patience: Patience) -> dict[str, float]:
        """Of the neutral prompt's last token; measured once per site."""
        with self.dictionaries.turns.turn("stream norms", patience):
            missing = [site for site in sites if site not in self._norms]
            if missing:
                measure = at_once(lambda: neutral_norms(self.hosted, missing))
                self._norms |= drained(self.dictionaries.background, measure, patience)
            return {site: self._norms[site] for site in sites}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Asking:
    """Who asks, for which row, and for how long."""

    tenant: str
    request: Request
    patience: Patience


def _said(entry: SteeringOrder, method: type, *own: str) -> dict[str, Any]:
    """The entry's keys that are settings of the method; `own` ones are told elsewhere."""
    names = {f.name for f in fields(method) if f.init} - {"kind", *own}
    return {name: getattr(entry, name) for name in names}


def reports_of(told: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[Mapping[str, Any], ...]:
    """What is told of all prompts: once if it agrees, else each with the number of its prompt."""
    if all(reports == told[0] for reports in told):
        return tuple(told[0])
    return tuple(
        {"prompt": place, **report} for place, reports in enumerate(told) for report in reports
    )
