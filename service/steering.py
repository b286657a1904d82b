"""What a request's `steering` becomes: one patch, and a report of what was chosen.

The steerers decide; here stands what they ask for: the host's dictionaries with scores and labels
from the registry, directions from their blobs, and forwards on the thread that owns the model.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.store import DigestStore
from models.errors import WrongBase
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch
from service.dictionaries import Dictionaries
from service.errors import BadSteering
from service.orders import SteeringOrder, TextOrder, VectorOrder
from service.owned import at_once, drained
from service.registry import Registry
from steerers.control_vectors import Vectors
from steerers.dictionary import Dictionary
from steerers.methods.control_vector import ControlVector, Direction
from steerers.methods.sae import SAE, SteeredFeature
from steerers.planned import Bounds, Planned, Request
from steerers.prompted import prompted
from steerers.score import REFERENCE, Neutral
from steerers.search import forms, words_of
from steerers.shelf import Shelf, at_prompt

_LABELS = 1000
"""Labels of one dictionary that a concept is compared with."""


@dataclass(frozen=True, kw_only=True)
class Steered:
    """The plan for one prompt.

    Attributes:
        reports: One or more per entry of the order.
    """

    patch: Patch = field(default_factory=Patch)
    reports: tuple[Mapping[str, Any], ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of all entries."""
        return tuple(w for report in self.reports for w in report["warnings"])


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
        self._lock = threading.Lock()

    @property
    def hosted(self) -> HostedModel:
        """The model."""
        return self.dictionaries.hosted

    def plan(self, order: TextOrder, ids: Sequence[int]) -> Steered:
        """What the order's steering means for a row that reads these tokens.

        Raises:
            Refusal: What a steerer, a dictionary or a direction cannot do, as it says itself.
        """
        family = self.hosted.family
        assert isinstance(family, Language)  # noqa: S101 - its host says so
        request = Request(
            prompt=tuple(ids), special=family.special_ids(self.hosted), bounds=self.bounds
        )
        patch, reports = Patch(), list[Mapping[str, Any]]()
        for entry in order.steering:
            came = {} if entry.preset is None else {"preset": entry.preset.as_dict()}
            self._check_base(entry)
            for planned in self._entry(entry, order.tenant, request):
                patch |= planned.patch
                reports.append({**came, **planned.report})
        return Steered(patch=patch, reports=tuple(reports))

    def _check_base(self, entry: SteeringOrder) -> None:
        preset = entry.preset
        if preset is not None and preset.fingerprint != self.hosted.fingerprint:
            name = f"{preset.name}@{preset.version}"
            raise WrongBase(name, preset.fingerprint, self.hosted.name, self.hosted.fingerprint)

    def _entry(self, entry: SteeringOrder, tenant: str, request: Request) -> list[Planned]:
        planned = []
        if entry.features or entry.concept is not None:
            method = SAE(
                features=tuple(
                    SteeredFeature(sae=f.sae, feature=f.feature, strength=f.strength)
                    for f in entry.features
                ),
                concept=entry.concept,
                strength=entry.strength,
                sae=entry.sae,
                count=entry.count,
                mode=entry.mode,
                a_max=entry.a_max,
                positions=entry.positions,
                skip_special=entry.skip_special,
                min_output_score=entry.min_output_score,
                on_low_score=entry.on_low_score,
            )
            planned.append(method.plan(self.hosted, self._shelves(entry, tenant), request))
        return [*planned, *(self._added(entry, use, request) for use in entry.vectors)]

    # --- features --------------------------------------------------------------------------------

    def _shelves(self, entry: SteeringOrder, tenant: str) -> dict[str, Shelf]:
        """The dictionaries that the entry means, by the names that it uses."""
        named = {f.sae for f in entry.features} | ({entry.sae} if entry.sae else set())
        found = {name: self.dictionaries.find(name, "steering") for name in sorted(named)}
        return {n: self._shelf(d, tenant) for n, d in (found or self.dictionaries.known).items()}

    def _shelf(self, dictionary: Dictionary, tenant: str) -> Shelf:
        known = self.dictionaries
        return Shelf(
            dictionary=dictionary,
            neutral=lambda: known.neutral(dictionary),
            at_prompt=lambda ids: self._at_prompt(dictionary, ids),
            scores=lambda features: known.scores(dictionary, features),
            index=lambda: known.lens(dictionary).index,
            labels=lambda concept: self._labels(dictionary, tenant, concept),
            max_activation=lambda feature: self._strongest(dictionary, tenant, feature),
        )

    def _at_prompt(self, dictionary: Dictionary, ids: Sequence[int]) -> Neutral:
        read = at_once(lambda: at_prompt(self.hosted, dictionary, ids))
        return drained(self.dictionaries.background, read)

    def _labels(self, dictionary: Dictionary, tenant: str, concept: str) -> dict[int, str]:
        texts = sorted({form for word in words_of(concept) for form in forms(word)})
        page = self.registry.labels.search(tenant, dictionary.digest, texts, _LABELS)
        return {label.feature: label.label for label in page.items}

    def _strongest(self, dictionary: Dictionary, tenant: str, feature: int) -> float | None:
        found = self.registry.snippets.of(
            tenant, self.hosted.fingerprint, dictionary.digest, [feature]
        )
        return found[feature].strongest if feature in found else None

    # --- directions ------------------------------------------------------------------------------

    def _added(self, entry: SteeringOrder, use: VectorOrder, request: Request) -> Planned:
        if entry.mode not in ("amp", "raw", "unit"):
            raise BadSteering(
                f"{entry.mode} is a mode of features; {use.label} is a vector.",
                remedy="Use mode raw (the vector as it is) or unit, or an entry of its own.",
                param="steering.mode",
            )
        vectors = self.vectors.get(use.digest)
        base = vectors.header.get("base", {}).get("fingerprint", "")
        if base != self.hosted.fingerprint:
            raise WrongBase(use.label, base, self.hosted.name, self.hosted.fingerprint)
        method = ControlVector(
            vector=use.label,
            strength=use.strength,
            unit="unit" if entry.mode == "unit" else "raw",
            positions=entry.positions,
            skip_special=entry.skip_special,
        )
        norms = self._stream_norms(list(vectors.vectors))
        direction = Direction(vectors=vectors, stream_norms=norms)
        return method.plan(self.hosted, {use.label: direction}, request)

    def _stream_norms(self, sites: Sequence[str]) -> dict[str, float]:
        """Of the neutral prompt's last token; measured once per site."""
        with self._lock:
            missing = [site for site in sites if site not in self._norms]
            if missing:
                found = drained(
                    self.dictionaries.background, at_once(lambda: self._measured(missing))
                )
                self._norms |= found
            return {site: self._norms[site] for site in sites}

    def _measured(self, sites: Sequence[str]) -> dict[str, float]:
        family = self.hosted.family
        assert isinstance(family, Language)  # noqa: S101 - as above
        read = prompted(self.hosted, family.tokenize(self.hosted, REFERENCE.prompt), sites)
        return {site: float(read.last(site).float().norm()) for site in sites}


def reports_of(plans: Sequence[Steered]) -> tuple[Mapping[str, Any], ...]:
    """The reports of all prompts: once if they agree, else each with the number of its prompt."""
    if all(plan.reports == plans[0].reports for plan in plans):
        return plans[0].reports
    return tuple(
        {"prompt": place, **report} for place, plan in enumerate(plans) for report in plan.reports
    )
