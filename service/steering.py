"""What a request's `steering` becomes: one patch, and a report of what was chosen.

The steerers decide; here stands what they ask for: the host's dictionaries with scores and labels
from the registry, directions from their blobs, and forwards on the thread that owns the model.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from inspect import signature
from typing import Any

from engines.store import DigestStore
from models.errors import Refusal, WrongBase
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch, Shift
from models.sight import Sight
from service.dictionaries import Dictionaries
from service.errors import BadSteering
from service.orders import SteeringOrder, TextOrder
from service.owned import at_once, drained
from service.patience import ENDLESS, Patience
from service.registry import Registry
from service.vectors import neutral_norms
from steerers.control_vectors import Vectors
from steerers.dictionary import Dictionary
from steerers.methods.back_patch import BackPatch
from steerers.methods.control_vector import Direction
from steerers.planned import Bounds, Planned, Request, of_patch
from steerers.score import Neutral
from steerers.shelf import Shelf, at_prompt
from steerers.whole import whole

Permitted = Callable[[str, int], bool]
"""Whether a feature of a dictionary, told by its digest, may be chosen."""
Permits = Callable[[str, bool], Permitted]
"""The same for a tenant's request, which may go on with features that nobody verified."""


def _any(_tenant: str, _unverified: bool) -> Permitted:
    return lambda _sae, _feature: True


@dataclass(frozen=True, kw_only=True)
class Steered:
    """The plan for one prompt.

    Attributes:
        reports: One per steerer of the order.
        whole: Per site what all entries together come to.
        strong: What the whole warns of.
    """

    patch: Patch = field(default_factory=Patch)
    reports: tuple[Mapping[str, Any], ...] = ()
    whole: tuple[Mapping[str, Any], ...] = ()
    strong: tuple[str, ...] = ()

    @property
    def steering(self) -> tuple[Mapping[str, Any], ...]:
        """Reports of what steers: a plan of back-patching is told apart."""
        return tuple(r for r in self.reports if r["kind"] != BackPatch.kind)

    @property
    def backpatch(self) -> tuple[Mapping[str, Any], ...]:
        """The report of the plan of back-patching, if there is one."""
        return tuple(r for r in self.reports if r["kind"] == BackPatch.kind)

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
        permits: Which features a concept may be steered with.
    """

    def __init__(
        self,
        dictionaries: Dictionaries,
        registry: Registry,
        store_bytes: int,
        bounds: Bounds,
        permits: "Permits | None" = None,
    ) -> None:
        self.dictionaries, self.registry, self.bounds = dictionaries, registry, bounds
        self.permits = permits or _any
        self.vectors = DigestStore(registry.edits.blob, Vectors.read, store_bytes)
        self._norms: dict[str, float] = {}

    @property
    def hosted(self) -> HostedModel:
        """The model."""
        return self.dictionaries.hosted

    def plan(
        self,
        order: TextOrder,
        ids: Sequence[int],
        patience: Patience = ENDLESS,
        sight: Sight | None = None,
    ) -> Steered:
        """What the order's steering means for a row that reads these tokens, and these pictures.

        Raises:
            Refusal: What a steerer, a dictionary or a direction cannot do, as it says itself.
            Left: Nobody waits for it any more.
        """
        family = self.hosted.family
        assert isinstance(family, Language)  # noqa: S101 - its host says so
        request = Request(
            prompt=tuple(ids), special=family.special_ids(self.hosted), bounds=self.bounds
        )
        permits = functools.cache(lambda: self.permits(order.tenant, order.unverified))
        asking = _Asking(
            tenant=order.tenant,
            request=request,
            patience=patience,
            permits=lambda sae, feature: permits()(sae, feature),
            sight=sight,
        )
        parts, reports = list[Planned](), list[Mapping[str, Any]]()
        for entry in order.steering:
            came = _came(entry)
            with placed(entry):
                self._check_base(entry)
                planned = self._planned(entry, asking)
            parts.append(planned)
            reports.append({**came, **planned.report})
        with placed(*order.steering):
            found = whole(parts, len(ids), self.bounds)
        return Steered(
            patch=found.patch, reports=tuple(reports), whole=found.sites, strong=found.warnings
        )

    def _check_base(self, entry: SteeringOrder) -> None:
        preset = entry.preset
        if preset is not None and preset.fingerprint != self.hosted.fingerprint:
            name = f"{preset.name}@{preset.version}"
            refusal = WrongBase(name, preset.fingerprint, self.hosted.name, self.hosted.fingerprint)
            refusal.param = entry.place
            raise refusal

    def _planned(self, entry: SteeringOrder, asking: "_Asking") -> Planned:
        """The steerer's plan; it is handed what the parameters of its `plan` are called."""
        offered: Mapping[str, Callable[[], Any]] = {
            "shelves": lambda: self._shelves(entry.method, asking),
            "directions": lambda: self._directions(entry, asking),
            "request": lambda: asking.request,
        }
        plan = entry.method.plan
        taken = {n: offered[n]() for n in signature(plan).parameters if n in offered}
        made = plan(self.hosted, **taken)
        if isinstance(made, Planned):
            return made
        shifted = [o.site for o in made if isinstance(o, Shift)]
        norms = self._stream_norms(shifted, asking.patience) if shifted else {}
        return of_patch(entry.method, made, norms, self.bounds)

    # --- features --------------------------------------------------------------------------------

    def _shelves(self, method: Any, asking: "_Asking") -> dict[str, Shelf]:
        """The dictionaries that the settings mean, by the names that they use; else all."""
        named = {f.sae for f in getattr(method, "features", ())}
        named |= {sae for sae in (getattr(method, "sae", None),) if sae}
        found = {name: self.dictionaries.find(name, "steering") for name in sorted(named)}
        return {n: self._shelf(d, asking) for n, d in (found or self.dictionaries.known).items()}

    def _shelf(self, dictionary: Dictionary, asking: "_Asking") -> Shelf:
        known, tenant, patience = self.dictionaries, asking.tenant, asking.patience
        return Shelf(
            dictionary=dictionary,
            neutral=lambda: known.neutral(dictionary, patience=patience),
            at_prompt=lambda ids: self._at_prompt(dictionary, ids, asking),
            scores=lambda features: known.scores(dictionary, features, patience=patience),
            index=lambda: known.lens(dictionary, patience).index,
            labels=lambda concept: known.labels(dictionary, tenant, concept),
            max_activation=lambda feature: self._strongest(dictionary, tenant, feature),
            permits=lambda feature: asking.permits(dictionary.digest, feature),
        )

    def _at_prompt(self, dictionary: Dictionary, ids: Sequence[int], asking: "_Asking") -> Neutral:
        if asking.sight is not None:
            raise BadSteering(
                "The largest code of a prompt with pictures is not taken.",
                remedy="Use a_max `neutral`, as scores are measured.",
                param="a_max",
            )
        read = at_once(lambda: at_prompt(self.hosted, dictionary, ids))
        return drained(self.dictionaries.background, read, asking.patience)

    def _strongest(self, dictionary: Dictionary, tenant: str, feature: int) -> float | None:
        found = self.registry.snippets.of(
            tenant, self.hosted.fingerprint, dictionary.digest, [feature]
        )
        return found[feature].strongest if feature in found else None

    # --- directions ------------------------------------------------------------------------------

    def _directions(self, entry: SteeringOrder, asking: "_Asking") -> dict[str, Direction]:
        """The direction that the settings name as `vector`."""
        if (use := entry.vector) is None:
            return {}
        vectors = self.vectors.get(use.digest)
        base = vectors.header.get("base", {}).get("fingerprint", "")
        if base != self.hosted.fingerprint:
            raise WrongBase(use.label, base, self.hosted.name, self.hosted.fingerprint)
        norms = self._stream_norms(list(vectors.vectors), asking.patience)
        return {use.label: Direction(vectors=vectors, stream_norms=norms)}

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
    """Who asks, for which row, for how long, and which features may be chosen for it."""

    tenant: str
    request: Request
    patience: Patience
    permits: "Permitted"
    sight: Sight | None = None


@contextmanager
def placed(*entries: SteeringOrder) -> Iterator[None]:
    """What is refused inside names the request's own key; of several entries, `steering`."""
    try:
        yield
    except Refusal as refusal:
        places = {entry.place for entry in entries}
        settings = {f.name for entry in entries for f in fields(entry.method)}
        if refusal.param in ("steering", "method"):
            refusal.param = _key(places, "steering")
        elif refusal.param in settings:
            refusal.param = _key(places, refusal.param)
        raise


def _key(places: set[str], setting: str) -> str:
    place = places.pop() if len(places) == 1 else "steering"
    named = place == "model" or place.endswith(".preset")
    return place if places or named or setting == "steering" else f"{place}.{setting}"


def _came(entry: SteeringOrder) -> dict[str, Any]:
    """The preset that an entry is from, and what it was found to gain."""
    if (preset := entry.preset) is None:
        return {}
    calibrated = {} if preset.calibration is None else {"calibration": dict(preset.calibration)}
    return {"preset": preset.as_dict(), **calibrated}


def reports_of(told: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[Mapping[str, Any], ...]:
    """What is told of all prompts: once if it agrees, else each with the number of its prompt."""
    if all(reports == told[0] for reports in told):
        return tuple(told[0])
    return tuple(
        {"prompt": place, **report} for place, reports in enumerate(told) for report in reports
    )
