"""Steer with features of sparse autoencoders, filtered by output score.

Arad, Mueller, Belinkov, "SAEs Are Good for Steering - If You Select the Right Features", EMNLP
2025. Features are named, or found for a concept: by their lens tokens and labels, those below the
threshold dropped, the best output score first. All that is added at a site is one vector; clamps
read the unsteered stream. Not covered: `a_max: live`, which reads the whole encoder at every token;
clamps on TopK; constant vectors under an input norm that depends on the token.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen
from jaxtyping import Float
from torch import Tensor

from models.hosted import HostedModel
from models.method import Method
from models.patch import Clamp, Patch
from steerers.dictionary import Dictionary, Feature
from steerers.errors import (
    ConceptNotCovered,
    LowOutputScore,
    ModeNotPossible,
    NoActivations,
    NothingToSteer,
    PromptNeeded,
    UnknownDictionary,
    UnknownFeature,
)
from steerers.input_score import MOST_ACTIVE_WITHOUT
from steerers.lens import language_of
from steerers.planned import Planned, Request, Steered, checked, finite, shifts, spans, weighed
from steerers.score import USABLE, Neutral, Score
from steerers.search import Candidate, Found, lens_places, rank, search
from steerers.shelf import Shelf

Mode = Literal["amp", "max", "raw", "unit", "clamp", "min_clamp", "multiply", "ablate"]
ADDED = ("amp", "max", "raw", "unit")
_CLAMPS: Mapping[str, Literal["set", "min", "multiply"]] = {
    "clamp": "set",
    "min_clamp": "min",
    "multiply": "multiply",
    "ablate": "multiply",
}
AMP = 3.0
"""The factor of A when nobody says: between the best ones of early and late layers."""


@dataclass(frozen=True, kw_only=True)
class SteeredFeature:
    """One feature of one SAE.

    Attributes:
        strength: In the mode's unit; None is the mode's default, where it has one.
    """

    sae: Annotated[str, MaxLen(200)]
    feature: Annotated[int, Ge(0)]
    strength: float | None = None


@dataclass(frozen=True, kw_only=True)
class SAE(Method):
    """What one row is steered with: features that are named, a concept, or both."""

    features: Annotated[tuple[SteeredFeature, ...], MaxLen(1000)] = ()
    concept: Annotated[str, MaxLen(200)] | None = None
    """A word or a few; the best features that write it are used."""
    strength: float | None = None
    """Of the concept's features, and of all that have none of their own."""
    sae: Annotated[str, MaxLen(200)] | None = None
    """Where the concept is searched; None is every SAE that there is."""
    count: Annotated[int, Ge(1), Le(5)] = 1
    """How many features a concept may use, best first."""
    mode: Mode = "amp"
    """amp: += s * A * d_f; max: += m * maxAct_f * d_f; raw: += c * d_f; unit: += c * d_f / |d_f|;
    clamp, min_clamp, multiply: the activation becomes v, max(a, v), c * a; ablate: 0."""
    a_max: Literal["neutral", "prompt", "live"] = "neutral"
    """Whose largest code A is: the neutral prompt's, or the request's own last prompt token's."""
    clamp_in: Literal["activation", "a_max", "max"] = "activation"
    """The unit of a clamp's value: an activation, a multiple of A, or of maxAct_f."""
    positions: Steered = "last_and_generated"
    skip_special: bool = False
    """Leave the tokenizer's marks in the prompt alone."""
    min_output_score: Annotated[float, Ge(0), Le(1)] | None = None
    """Features below it are not used; None is 0.01, the paper's `usable`."""
    on_low_score: Literal["reject", "warn", "allow"] = "reject"
    kind: Literal["sae"] = "sae"

    @property
    def minimum(self) -> float:
        """The output score that a feature reaches."""
        return USABLE if self.min_output_score is None else self.min_output_score

    def plan(
        self,
        hosted: HostedModel,
        shelves: Mapping[str, Shelf] | None = None,
        request: Request | None = None,
    ) -> Planned:
        """The patch, and what was chosen.

        Args:
            hosted: The model; nothing runs on it but what the shelves run.
            shelves: What is known of each SAE, by the name that features use.
            request: What the plan may depend on: the prompt's tokens, marks, bounds.

        Raises:
            MethodNotApplicable: The model does not continue texts.
            UnknownDictionary, UnknownFeature: A name that is not there.
            LowOutputScore, ConceptNotCovered: Under `reject`.
            ModeNotPossible, NoActivations, BadStrength: A mode or its strength.
            TooStrong, NothingToSteer, PromptNeeded: The change as a whole.
        """
        language_of(hosted, self.kind)
        there, request = shelves or {}, request or Request()
        if self.a_max == "live":
            reason = "the engine would read the whole encoder at every token."
            raise ModeNotPossible("a_max live", "any SAE", reason)
        plan = _Plan(self, hosted, there, request)
        for one in self.features:
            plan.add(one)
        if self.concept is not None:
            plan.add_concept(self.concept)
        return plan.done()


_Usable = tuple[str, Candidate, Score]
"""A feature that a concept may use: the name of its SAE, how it was found, its score."""


@dataclass
class _Plan:
    """A plan in the making."""

    settings: SAE
    hosted: HostedModel
    shelves: Mapping[str, Shelf]
    request: Request
    warnings: list[str] = field(default_factory=list)
    chosen: list[dict[str, Any]] = field(default_factory=list)
    searched: list[dict[str, Any]] = field(default_factory=list)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    clamps: dict[str, list[tuple[Feature, float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    norms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    measured: dict[str, Neutral] = field(default_factory=dict)

    def shelf(self, name: str) -> Shelf:
        if name not in self.shelves:
            raise UnknownDictionary("SAE", name, ", ".join(self.shelves))
        return self.shelves[name]

    def add(self, one: SteeredFeature) -> None:
        """A feature that was named."""
        shelf = self.shelf(one.sae)
        if one.feature >= shelf.dictionary.features:
            raise UnknownFeature(one.sae, one.feature, shelf.dictionary.features)
        score = shelf.scores([one.feature])[one.feature]
        self._check(one, score)
        self._use(one, shelf, score)

    def _check(self, one: SteeredFeature, score: Score) -> None:
        found, least = score.output_score, self.settings.minimum
        if found is not None and found >= least:
            return
        refused = LowOutputScore(one.sae, one.feature, found, least)
        if self.settings.on_low_score == "reject":
            raise refused
        if self.settings.on_low_score == "warn":
            self.warnings.append(refused.problem)

    def add_concept(self, concept: str) -> None:
        """The best features for it, over all SAEs that are meant."""
        names = list(self.shelves) if self.settings.sae is None else [self.settings.sae]
        found = {name: self._search(self.shelf(name), concept) for name in names}
        self.searched += [
            {"sae": self.shelves[name].dictionary.id, **told.as_dict()}
            for name, told in found.items()
        ]
        usable = [(n, c, s) for n, told in found.items() for c, s in told.kept]
        if not usable and self.settings.on_low_score != "reject":
            usable = [(n, c, s) for n, told in found.items() for c, s in told.dropped]
        places = lens_places(self.hosted)
        usable.sort(key=lambda one: rank(one[1], one[2], places))
        if not usable:
            best = max((t.best for t in found.values() if t.best is not None), default=None)
            total = sum(len(told.dropped) for told in found.values())
            raise ConceptNotCovered(concept, names, total, best)
        for name, candidate, score in self._permitted(usable, concept):
            one = SteeredFeature(sae=name, feature=candidate.feature)
            self._check(one, score)
            self._use(one, self.shelves[name], score, concept)

    def _permitted(self, usable: Sequence[_Usable], concept: str) -> Sequence[_Usable]:
        """The best that may steer; the best of all where none may, for who refuses them to name."""
        found, passed = list[_Usable](), list[str]()
        for one in usable:
            name, candidate, _ = one
            if self.shelves[name].permits(candidate.feature):
                found.append(one)
            else:
                passed.append(f"{candidate.feature} of {self.shelves[name].dictionary.id}")
            if len(found) == self.settings.count:
                break
        if found and passed:
            told = ", ".join(passed)
            self.warnings.append(f"For {concept!r} passed over, not being permitted: {told}.")
        return found or usable[: self.settings.count]

    def _search(self, shelf: Shelf, concept: str) -> Found:
        labels, least = shelf.labels(concept), self.settings.minimum
        return search(
            self.hosted, concept, shelf.index(), shelf.scores, labels=labels, minimum=least
        )

    def _use(
        self, one: SteeredFeature, shelf: Shelf, score: Score, concept: str | None = None
    ) -> None:
        dictionary, site = shelf.dictionary, shelf.dictionary.site
        feature = dictionary.feature(one.feature)
        neutral = self._neutral(one.sae, shelf)
        strength = one.strength if one.strength is not None else self.settings.strength
        if self.settings.mode in ADDED:
            vector = self._vector(feature, strength, shelf, neutral)
            self.vectors[site] = self.vectors.get(site, 0.0) + vector
            norm = float(vector.norm())
        else:
            value = self._value(feature, strength, shelf, neutral)
            norm = self._reach(feature, value, neutral)
            self.clamps[site].append((feature, value, norm))
            self.norms[site] += norm
        self.chosen.append(_told(one, dictionary, score, neutral, norm, concept))

    def _neutral(self, name: str, shelf: Shelf) -> Neutral:
        """Of the prompt that A is taken from, once per SAE."""
        if name not in self.measured:
            if self.settings.a_max == "neutral":
                self.measured[name] = shelf.neutral()
            elif self.request.prompt is None:
                raise PromptNeeded("a_max")
            else:
                self.measured[name] = shelf.at_prompt(self.request.prompt)
        return self.measured[name]

    def _vector(
        self, feature: Feature, strength: float | None, shelf: Shelf, neutral: Neutral
    ) -> Float[Tensor, " d"]:
        mode, sae = self.settings.mode, shelf.dictionary.id
        if (reason := shelf.dictionary.unshiftable) is not None:
            raise ModeNotPossible(mode, sae, reason)
        if mode == "amp":
            strength = AMP if strength is None else strength
        amount, row = finite(strength, mode), feature.decoder
        if mode == "amp":
            amount *= _some_a(neutral, sae)
        elif mode == "max":
            amount *= _max_act(shelf, feature.index)
        elif mode == "unit":
            amount /= max(float(row.norm()), 1e-30)
        return amount * row

    def _value(
        self, feature: Feature, strength: float | None, shelf: Shelf, neutral: Neutral
    ) -> float:
        """What the clamp moves the activation to, or multiplies it by."""
        mode, sae = self.settings.mode, shelf.dictionary.id
        if feature.unclampable is not None:
            raise ModeNotPossible(mode, sae, feature.unclampable)
        if mode == "ablate":
            return 0.0
        value = finite(strength, mode)
        if mode == "multiply" or self.settings.clamp_in == "activation":
            return value
        if self.settings.clamp_in == "a_max":
            return value * _some_a(neutral, sae)
        return value * _max_act(shelf, feature.index)

    def _reach(self, feature: Feature, value: float, neutral: Neutral) -> float:
        """How far a clamp can move the stream, as far as a plan can know: |change of a| |d_f|."""
        mode, a_max = self.settings.mode, neutral.a_max
        if mode == "multiply" and value == 1:
            raise NothingToSteer("A feature multiplied by 1 stays what it is.")
        if mode == "min_clamp" and value <= 0:
            raise NothingToSteer("An activation is never below 0.")
        by_factor = mode in ("multiply", "ablate")
        amounts = ((value - 1) * a_max,) if by_factor else (value, value - a_max)
        return max(map(abs, amounts)) * float(feature.decoder.norm())

    def done(self) -> Planned:
        """One vector per site, the clamps beside it, and the report."""
        if not self.chosen:
            raise NothingToSteer("No feature and no concept is named.")
        settings, operations, sites, reaches = self.settings, [], [], dict[str, float]()
        where = spans(settings.positions, self.request, skip_special=settings.skip_special)
        for site in sorted({*self.vectors, *self.clamps}):
            sites.append(self._weighed(site))
            if site in self.vectors:
                operations += shifts(site, checked(site, self.vectors[site]), where)
            for feature, value, reach in self.clamps.get(site, ()):
                held = [_clamp(site, settings.mode, feature, value, span) for span in where]
                operations += held
                reaches.update((clamp.digest, reach) for clamp in held)
        patch = Patch(tuple(operations))
        self.hosted.check(patch)
        report = {
            "kind": settings.kind,
            "mode": settings.mode,
            "a_max": settings.a_max,
            "positions": settings.positions,
            "skip_special": settings.skip_special,
            "min_output_score": settings.minimum,
            "on_low_score": settings.on_low_score,
            "sites": sites,
            "features": self.chosen,
            "concepts": self.searched,
            "warnings": self.warnings,
            "patch": patch.digest,
        }
        stream_norms = {told["site"]: told["stream_norm"] for told in sites}
        return Planned(patch=patch, report=report, stream_norms=stream_norms, reaches=reaches)

    def _weighed(self, site: str) -> dict[str, Any]:
        here = [
            n for name, n in self.measured.items() if self.shelves[name].dictionary.site == site
        ]
        added = self.vectors.get(site)
        norm = self.norms[site] if added is None else float(added.norm())
        told, warned = weighed(site, norm, here[0].stream_norm, self.request.bounds)
        self.warnings += warned
        return told


def _some_a(neutral: Neutral, sae: str) -> float:
    if neutral.a_max <= 0:
        raise NothingToSteer(f"No feature of {sae} is active at the prompt's last token: A is 0.")
    return neutral.a_max


def _max_act(shelf: Shelf, feature: int) -> float:
    """The feature's largest activation; AxBench's 50 if it was never active."""
    found = shelf.max_activation(feature)
    if found is None:
        raise NoActivations(shelf.dictionary.id, feature)
    return found if found > 0 else MOST_ACTIVE_WITHOUT


def _clamp(site: str, mode: Mode, feature: Feature, value: float, span: Any) -> Clamp:
    return Clamp(
        site=site,
        encoder=feature.encoder,
        encoder_bias=feature.bias,
        decoder=feature.decoder,
        threshold=feature.threshold,
        value=value,
        mode=_CLAMPS[mode],
        positions=span,
    )


def _told(
    one: SteeredFeature,
    dictionary: Dictionary,
    score: Score,
    neutral: Neutral,
    norm: float,
    concept: str | None,
) -> dict[str, Any]:
    return {
        "sae": dictionary.id,
        "sae_digest": dictionary.digest,
        "site": dictionary.site,
        "feature": one.feature,
        "concept": concept,
        "output_score": score.output_score,
        "delta_confidence": score.delta_confidence,
        "tokens": list(score.tokens),
        "a_max": neutral.a_max,
        "vector_norm": norm,
    }


METHOD = SAE
EXAMPLE = SAE(features=(SteeredFeature(sae="toy", feature=0, strength=3.0),))
