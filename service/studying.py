"""What a host answers about its dictionaries and vectors: `service.questions` says what is asked.

Every method is called on a worker thread and may wait for the owner thread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from service.datasets import Dataset, fitting
from service.dictionaries import Dictionaries, check
from service.orders import TextOrder
from service.patience import ENDLESS, Patience
from service.questions import (
    AdoptVector,
    CheckFeatures,
    CheckRows,
    CheckVector,
    FindFeatures,
    ListSaes,
    Question,
    SettleSteering,
    ShowFeature,
    ShowSae,
)
from service.registry import Registry
from service.registry.errors import BadPage
from service.registry.records import FeatureLabel, Page
from service.showing import Known, shown
from service.vectors import adopted, sites_of
from steerers.dictionary import Dictionary
from steerers.lens import language_of
from steerers.methods.sae import SAE
from steerers.score import REFERENCE, STRONG, USABLE
from steerers.search import search
from steerers.snippets import spelled

CANDIDATES = 200
"""Features that one search may score."""

_BRIEF = 10
"""Lens tokens of a feature in a list."""


class Plans(Protocol):
    """A plan: the patch is its own affair, the reports say what was chosen."""

    @property
    def reports(self) -> Sequence[Mapping[str, Any]]:
        """One or more per entry of the order."""
        ...


class Planner(Protocol):
    """`service.steering.Steering`."""

    def plan(self, order: TextOrder, ids: Sequence[int], patience: Patience) -> Plans:
        """What the order's steering means for a row that reads these tokens."""
        ...


class Study:
    """Answers the questions of one host's dictionaries."""

    def __init__(self, dictionaries: Dictionaries, registry: Registry, planner: Planner) -> None:
        self.dictionaries, self.registry, self.planner = dictionaries, registry, planner
        self.hosted = dictionaries.hosted
        self._spelt: dict[int, str] = {}  # at most the vocabulary
        self._answers: Mapping[type[Any], Callable[[Any, Patience], Any]] = {
            ListSaes: lambda asked, _: self.saes(asked),
            ShowSae: lambda asked, _: self.sae(asked),
            FindFeatures: self.find,
            ShowFeature: self.feature,
            CheckFeatures: lambda asked, _: self.check(asked),
            SettleSteering: self.settle,
            CheckVector: lambda asked, _: sites_of(self.hosted, asked.payload),
            CheckRows: lambda asked, _: fitting(self.hosted, Dataset.read(asked.dataset)),
            AdoptVector: lambda asked, _: adopted(self.hosted, dictionaries.background, asked),
        }

    def answer(self, question: Question, patience: Patience = ENDLESS) -> Any:
        """The answer to any of the questions.

        Raises:
            DeadlineExceeded, Left: The patience ended.
        """
        return self._answers[type(question)](question, patience)

    def saes(self, asked: ListSaes) -> list[dict[str, Any]]:
        """Every dictionary."""
        return [self._sae(asked.tenant, d) for d in self.dictionaries.known.values()]

    def sae(self, asked: ShowSae) -> dict[str, Any]:
        """One dictionary."""
        return self._sae(asked.tenant, self.dictionaries.find(asked.sae))

    def check(self, asked: CheckFeatures) -> dict[str, Any]:
        """Refuse features that are not there."""
        dictionary = self.dictionaries.find(asked.sae)
        check(dictionary, asked.features)
        return {
            "id": dictionary.id,
            "digest": dictionary.digest,
            "features": dictionary.features,
            "site": dictionary.site,
        }

    def feature(self, asked: ShowFeature, patience: Patience) -> dict[str, Any]:
        """One feature with all that is known of it."""
        dictionary = self.dictionaries.find(asked.sae)
        features = [asked.feature]
        scores = self.dictionaries.scores(dictionary, features, asked.settings, patience)
        known = self._known(dictionary, asked.tenant, features, patience, scores=scores)
        told = shown(known, asked.feature, self._spell)
        around = self.registry.snippets.of(
            asked.tenant, self.hosted.fingerprint, dictionary.digest, [asked.feature]
        ).get(asked.feature)
        clamped = dictionary.feature(asked.feature)
        return {
            **told,
            "norm": float(clamped.decoder.norm()),
            "threshold": clamped.threshold,
            "clampable": clamped.unclampable is None,
            "strongest": around.strongest if around else None,
            "input_score": around.input_score if around else None,
            "snippets": list(around.snippets) if around else [],
        }

    def find(self, asked: FindFeatures, patience: Patience) -> dict[str, Any]:
        """Features, a page of them."""
        dictionary = self.dictionaries.find(asked.sae)
        if asked.concept is not None:
            return self._of_concept(dictionary, asked, asked.concept, patience)
        if asked.token is not None:
            found, told = self._with_token(dictionary, asked.token, patience)
            return self._searched(dictionary, asked, found, told, patience)
        if asked.label is not None:
            return self._labelled(dictionary, asked, patience)
        return self._listed(dictionary, asked, patience)

    def settle(self, asked: SettleSteering, patience: Patience) -> dict[str, Any]:
        """What steering means now; planned as for a request that reads the neutral prompt."""
        language = language_of(self.hosted, "control_vector")
        ids = language.tokenize(self.hosted, REFERENCE.prompt)
        order = TextOrder(id="preset", tenant=asked.tenant, steering=asked.steering)
        reports = [dict(report) for report in self.planner.plan(order, ids, patience).reports]
        features = [
            feature
            for entry, report in zip(asked.steering, reports, strict=True)
            if isinstance(entry.method, SAE)
            for feature in _settled(entry.method, report)
        ]
        return {"features": features, "report": reports}

    # --- without a search ------------------------------------------------------------------------

    def _listed(
        self, dictionary: Dictionary, asked: FindFeatures, patience: Patience
    ) -> dict[str, Any]:
        """By number, or by score where a least one is asked for: those that are scored."""
        if asked.least is None:
            start = _number(asked.after) + 1 if asked.after is not None else 0
            features = range(start, min(start + asked.limit, dictionary.features))
            more = bool(features) and features[-1] + 1 < dictionary.features
            cursor = str(features[-1]) if more else None
            return self._page(dictionary, asked, list(features), cursor, None, patience)
        measure = self.dictionaries.measure(dictionary, asked.settings)
        page = self.registry.scores.best(measure, asked.limit, asked.after, least=asked.least)
        covered = self.registry.scores.coverage(measure, (asked.least,))
        told = {
            "features": dictionary.features,
            "scored": covered.scored,
            "kept": covered.reach[asked.least],
        }
        features = [score.feature for score in page.items]
        return self._page(dictionary, asked, features, page.next_cursor, told, patience)

    def _labelled(
        self, dictionary: Dictionary, asked: FindFeatures, patience: Patience
    ) -> dict[str, Any]:
        page: Page[FeatureLabel] = self.registry.labels.search(
            asked.tenant, dictionary.digest, [str(asked.label)], asked.limit, asked.after
        )
        features = list(dict.fromkeys(one.feature for one in page.items))
        return self._filtered(dictionary, asked, features, page.next_cursor, patience)

    def _filtered(
        self,
        dictionary: Dictionary,
        asked: FindFeatures,
        features: list[int],
        cursor: str | None,
        patience: Patience,
    ) -> dict[str, Any]:
        """Those that reach the least score; missing scores are computed."""
        if asked.least is None:
            return self._page(dictionary, asked, features, cursor, None, patience)
        scores = self.dictionaries.scores(dictionary, features, asked.settings, patience)
        kept = [f for f in features if (scores[f].output_score or 0.0) >= asked.least]
        told = {"candidates": len(features), "kept": len(kept)}
        return self._page(dictionary, asked, kept, cursor, told, patience)

    # --- searches over the lens ------------------------------------------------------------------

    def _of_concept(
        self, dictionary: Dictionary, asked: FindFeatures, concept: str, patience: Patience
    ) -> dict[str, Any]:
        """What steering towards the concept would choose from, the best first."""
        least = USABLE if asked.least is None else asked.least
        found = search(
            self.hosted,
            concept,
            self.dictionaries.lens(dictionary, patience).index,
            lambda features: self.dictionaries.scores(
                dictionary, features, asked.settings, patience
            ),
            labels=self.dictionaries.labels(dictionary, asked.tenant, concept),
            minimum=least,
        )
        told = found.as_dict()
        told["tokens"] = [{"id": i, "token": self._spell(i)} for i in found.tokens]
        told["kept"] = len(found.kept)
        features = [candidate.feature for candidate, _ in found.kept]
        start = 0 if asked.after is None else _number(asked.after)
        end = start + asked.limit
        cursor = str(end) if end < len(features) else None
        return self._page(dictionary, asked, features[start:end], cursor, told, patience)

    def _with_token(
        self, dictionary: Dictionary, text: str, patience: Patience
    ) -> tuple[list[int], dict[str, Any]]:
        """Features that promote the text as a token, with or without a space before it."""
        ids = self._tokens(text)
        index = self.dictionaries.lens(dictionary, patience).index
        best: dict[int, int] = {}
        for token in ids:
            for feature, place in index.find(token):
                best[feature] = min(place, best.get(feature, place))
        order = sorted(best, key=lambda f: (best[f], f))
        told: dict[str, Any] = {"tokens": [{"id": i, "token": self._spell(i)} for i in ids]}
        if not ids:
            told["reason"] = f"no token of {self.hosted.name} is {text!r}; search by `concept`"
        return order, told

    def _tokens(self, text: str) -> list[int]:
        forms = (text, f" {text}") if not text.startswith(" ") else (text,)
        rows = [self._ids(form) for form in forms]
        return list(dict.fromkeys(row[0] for row in rows if len(row) == 1))

    def _ids(self, text: str) -> list[int]:
        """Without a piece in front that is nothing but the space."""
        ids = language_of(self.hosted).tokenize(self.hosted, text, special=False)
        return ids[1:] if len(ids) > 1 and not self._spell(ids[0]).strip() else ids

    def _searched(
        self,
        dictionary: Dictionary,
        asked: FindFeatures,
        found: Sequence[int],
        told: Mapping[str, Any],
        patience: Patience,
    ) -> dict[str, Any]:
        """A page of what a search found, in its order; filtered, the first `CANDIDATES` only."""
        kept = list(found)
        report = {**told, "candidates": len(found)}
        if asked.least is not None:
            kept = kept[:CANDIDATES]
            scores = self.dictionaries.scores(dictionary, kept, asked.settings, patience)
            kept = [f for f in kept if (scores[f].output_score or 0.0) >= asked.least]
            kept.sort(key=lambda f: -(scores[f].output_score or 0.0))
            report |= {"scored": min(len(found), CANDIDATES), "kept": len(kept)}
        start = _number(asked.after) if asked.after is not None else 0
        end = start + asked.limit
        cursor = str(end) if end < len(kept) else None
        return self._page(dictionary, asked, kept[start:end], cursor, report, patience)

    # --- what is shown ---------------------------------------------------------------------------

    def _page(
        self,
        dictionary: Dictionary,
        asked: FindFeatures,
        features: list[int],
        cursor: str | None,
        search: Mapping[str, Any] | None,
        patience: Patience,
    ) -> dict[str, Any]:
        scores = self.dictionaries.stored(dictionary, features, asked.settings)
        known = self._known(dictionary, asked.tenant, features, patience, scores=scores)
        return {
            "items": [shown(known, f, self._spell, most=_BRIEF) for f in features],
            "has_more": cursor is not None,
            "next_cursor": cursor,
            "search": dict(search) if search is not None else None,
        }

    def _known(
        self,
        dictionary: Dictionary,
        tenant: str,
        features: Sequence[int],
        patience: Patience,
        *,
        scores: Any,
    ) -> Known:
        return Known(
            dictionary=dictionary,
            lens=self.dictionaries.lens_tokens(dictionary, features, patience),
            labels=self.registry.labels.of(tenant, dictionary.digest, features),
            scores=scores,
            input_scores=self.registry.snippets.input_scores(
                tenant, self.hosted.fingerprint, dictionary.digest, features
            ),
        )

    def _sae(self, tenant: str, dictionary: Dictionary) -> dict[str, Any]:
        measure = self.dictionaries.measure(dictionary)
        covered = self.registry.scores.coverage(measure, (USABLE, STRONG))
        sample = self.registry.snippets.sample(tenant, self.hosted.fingerprint, dictionary.digest)
        return {
            "object": "sae",
            "id": dictionary.id,
            "model": self.hosted.name,
            "digest": dictionary.digest,
            "site": dictionary.site,
            "format": dictionary.format,
            "features": dictionary.features,
            "width": dictionary.width,
            "activation": dictionary.activation.kind,
            "base": dictionary.model,
            "declared": dict(dictionary.declared),
            "lens": self.dictionaries.has_lens(dictionary),
            "scores": {
                "settings": self.dictionaries.told(REFERENCE),
                "scored": covered.scored,
                "of": dictionary.features,
                "told": _scored(dictionary, covered.scored),
                "usable": covered.reach[USABLE],
                "strong": covered.reach[STRONG],
            },
            "snippets": dict(sample.told) if sample else None,
        }

    def _spell(self, token: int) -> str:
        if token not in self._spelt:
            self._spelt[token] = spelled(self.hosted, token)
        return self._spelt[token]


def _settled(asked: SAE, report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The features that were chosen, each by the digest of its dictionary, with its strength."""
    chosen = report["features"]
    # The steerer tells the named ones first, in their order, then a concept's.
    named = [one.strength for one in asked.features]
    strengths = [*named, *[asked.strength] * (len(chosen) - len(named))]
    for use, strength in zip(chosen, strengths, strict=True):
        told = {"sae": f"sha256:{use['sae_digest']}", "feature": use["feature"]}
        yield told if strength is None else {**told, "strength": strength}


def _scored(dictionary: Dictionary, scored: int) -> str:
    """How many features have a score in the registry, and how the others get one."""
    told = f"{scored} of {dictionary.features} features are scored"
    if scored >= dictionary.features:
        return f"{told}."
    return f"{told}; POST /v1/saes/{dictionary.id}/scores scores the others."


def _number(after: str) -> int:
    if not after.isdecimal() or len(after) > 18:
        raise BadPage(f"after is {after[:40]!r}")
    return int(after)
