"""The dictionaries of one hosted model, and what is known of their features.

Lenses and scores are computed on the thread that owns the model, when somebody first needs them,
and kept: lenses in the state folder, scores in the registry, for all replicas. Everything here is
called on worker threads, which wait; never on the owner thread.
"""

import hashlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engines.store import Kept
from models.hosted import HostedModel
from models.progress import Progress
from service.errors import LensUnderWay
from service.jobs import Outcome
from service.lenses import Lens, LensFiles, chosen
from service.owned import Turns, at_once, drained
from service.owning import Background
from service.patience import ENDLESS, Patience
from service.registry import Registry
from service.registry.records import FeatureScore, Measure
from steerers.dictionary import Dictionary
from steerers.errors import UnknownDictionary, UnknownFeature
from steerers.lens import LensTokens, lens, lens_of_all
from steerers.output_score import Scorer, scores
from steerers.score import REFERENCE, Neutral, Score, ScoreSettings
from steerers.search import forms, words_of

BATCH = 64
"""Features that are scored between two rounds of the rows."""

_LABELS = 1000
"""Labels of one dictionary that a concept is compared with."""

_SCORERS = 16
"""Neutral prompts whose keys and values are kept."""

_LENS_BYTES = 512 * 2**20
"""Lenses in memory; the others are read from disk."""


@dataclass(frozen=True, kw_only=True)
class ScoreStep(Progress):
    """Some features have been scored."""

    scores: tuple[Score, ...] = ()


class Dictionaries:
    """What a language host holds.

    Args:
        hosted: The model.
        known: Its dictionaries.
        registry: Keeps scores.
        background: Hands work to the owner thread.
        folder: Keeps lenses.
        wait_seconds: How long a caller waits for a lens that is being computed.
    """

    def __init__(
        self,
        hosted: HostedModel,
        known: Sequence[Dictionary],
        *,
        registry: Registry,
        background: Background,
        folder: Path,
        wait_seconds: float = 60.0,
    ) -> None:
        self.hosted, self.registry, self.background = hosted, registry, background
        self.known: Mapping[str, Dictionary] = {d.id: d for d in known}
        self.wait_seconds = wait_seconds
        self.turns = Turns()
        self._files = LensFiles(folder=folder)
        self._lenses = Kept[Lens](_LENS_BYTES)
        self._pending: dict[str, Outcome] = {}
        self._scorers: dict[tuple[str, str], Scorer] = {}

    def find(self, sae: str, param: str = "sae") -> Dictionary:
        """A dictionary by its id, or by `sha256:` and its digest; `param` is the request's key.

        Raises:
            UnknownDictionary: The model has none of that name.
        """
        for dictionary in self.known.values():
            if sae in (dictionary.id, f"sha256:{dictionary.digest}"):
                return dictionary
        unknown = UnknownDictionary("sparse autoencoder", sae, ", ".join(self.known))
        unknown.param = param
        raise unknown

    def measure(self, dictionary: Dictionary, settings: ScoreSettings = REFERENCE) -> Measure:
        """Under what scores are kept: weights, dictionary, and settings with the precision."""
        dtype = str(self.hosted.dtype)
        told = hashlib.sha256(f"{settings.digest}\n{dtype}".encode()).hexdigest()
        return Measure(fingerprint=self.hosted.fingerprint, sae=dictionary.digest, settings=told)

    def told(self, settings: ScoreSettings) -> dict[str, object]:
        """What a measure's settings are, to be read by people."""
        return {**asdict(settings), "dtype": str(self.hosted.dtype).removeprefix("torch.")}

    # --- scores ----------------------------------------------------------------------------------

    def stored(
        self, dictionary: Dictionary, features: Sequence[int], settings: ScoreSettings = REFERENCE
    ) -> dict[int, Score]:
        """Those of the features that somebody has scored; nothing is computed."""
        found = self.registry.scores.get(self.measure(dictionary, settings), features)
        return {feature: as_score(record) for feature, record in found.items()}

    def scores(
        self,
        dictionary: Dictionary,
        features: Sequence[int],
        settings: ScoreSettings = REFERENCE,
        patience: Patience = ENDLESS,
    ) -> dict[int, Score]:
        """All the features' scores; missing ones are computed and kept.

        Two callers that miss the same features compute them once.

        Raises:
            UnknownFeature: The dictionary does not have it.
            DeadlineExceeded, Left: The patience ended.
        """
        check(dictionary, features)
        found = self.stored(dictionary, features, settings)
        if len(found) == len(set(features)):
            return found
        with self.turns.turn((dictionary.digest, settings.digest), patience):
            found = self.stored(dictionary, features, settings)
            missing = sorted(set(features) - set(found))
            if missing:
                steps = self.scoring(dictionary, missing, settings, self.known_lens(dictionary))
                fresh = drained(self.background, collected(steps), patience)
                self.keep(dictionary, fresh, settings)
                found |= {score.feature: score for score in fresh}
        return found

    def scoring(
        self,
        dictionary: Dictionary,
        features: Sequence[int],
        settings: ScoreSettings = REFERENCE,
        known: LensTokens | None = None,
    ) -> Generator[ScoreStep, None, None]:
        """Work for the owner thread: each step has finished scores, which the caller keeps.

        Args:
            dictionary: Whose features.
            features: Their numbers.
            settings: How they are measured.
            known: The lens of the whole dictionary, if it is there: it is not computed again.

        Raises:
            UnknownFeature: The dictionary does not have it.
        """
        check(dictionary, features)
        scorer = self._scorer(dictionary, settings)
        tokens = None if known is None else known.ids[list(features)]
        for some in scores(scorer, features, BATCH, tokens):
            told = some.progress
            yield ScoreStep(stage=told.stage, done=told.done, total=told.total, scores=some.scores)

    def keep(
        self, dictionary: Dictionary, found: Sequence[Score], settings: ScoreSettings = REFERENCE
    ) -> None:
        """Put scores into the registry."""
        measure, told = self.measure(dictionary, settings), self.told(settings)
        self.registry.scores.put(measure, [as_record(score) for score in found], told)

    def neutral(
        self,
        dictionary: Dictionary,
        settings: ScoreSettings = REFERENCE,
        patience: Patience = ENDLESS,
    ) -> Neutral:
        """What the neutral prompt's last token says at the dictionary's site."""
        scorer = self._scorer(dictionary, settings)
        if "neutral" in vars(scorer):
            return scorer.neutral
        return drained(self.background, at_once(lambda: scorer.neutral), patience)

    def _scorer(self, dictionary: Dictionary, settings: ScoreSettings) -> Scorer:
        key = (dictionary.digest, settings.digest)
        with self.turns.turn("scorers"):
            found = self._scorers.pop(key, None)
            if found is None:
                found = Scorer(hosted=self.hosted, dictionary=dictionary, settings=settings)
            self._scorers[key] = found
            while len(self._scorers) > _SCORERS:
                del self._scorers[next(iter(self._scorers))]
        return found

    # --- labels ----------------------------------------------------------------------------------

    def labels(self, dictionary: Dictionary, tenant: str, concept: str) -> dict[int, str]:
        """Labels that may mention the concept, by feature: the tenant's and public ones."""
        texts = sorted({form for word in words_of(concept) for form in forms(word)})
        page = self.registry.labels.search(tenant, dictionary.digest, texts, _LABELS)
        return {label.feature: label.label for label in page.items}

    # --- lenses ----------------------------------------------------------------------------------

    def lens(self, dictionary: Dictionary, patience: Patience = ENDLESS) -> Lens:
        """The lens of a whole dictionary with its index; computed once, then read from disk.

        Raises:
            LensUnderWay: It takes longer than a caller waits; it goes on.
            DeadlineExceeded, Left: The patience ended before; it goes on as well.
        """
        key = self._lens_key(dictionary)
        if (kept := self._lens_at_hand(key)) is not None:
            return kept
        with self.turns.turn(key):
            outcome = self._pending.get(key)
            if outcome is None:
                outcome, work = Outcome(), lens_of_all(self.hosted, dictionary)
                self.background(work, lambda _: None, outcome.done, outcome.failed)
                self._pending[key] = outcome
        until = time.monotonic() + self.wait_seconds
        patience.wait(lambda seconds: outcome.over.wait(seconds) or time.monotonic() > until)
        if not outcome.over.is_set():
            raise LensUnderWay(dictionary.id)
        with self.turns.turn(key):
            self._pending.pop(key, None)
            if (kept := self._lens_at_hand(key)) is not None:
                return kept
            if outcome.error is not None:
                raise outcome.error
            self._files.write(key, outcome.result)
            return self._kept(key, outcome.result)

    def has_lens(self, dictionary: Dictionary) -> bool:
        """Whether `lens` answers at once."""
        return self._lens_at_hand(self._lens_key(dictionary)) is not None

    def known_lens(self, dictionary: Dictionary) -> LensTokens | None:
        """The lens of the whole dictionary if somebody has computed it; nothing is computed."""
        at_hand = self._lens_at_hand(self._lens_key(dictionary))
        return None if at_hand is None else at_hand.tokens

    def keep_lens(self, dictionary: Dictionary, tokens: LensTokens) -> None:
        """A job has computed it."""
        key = self._lens_key(dictionary)
        self._files.write(key, tokens)
        self._kept(key, tokens)

    def lens_tokens(
        self, dictionary: Dictionary, features: Sequence[int], patience: Patience = ENDLESS
    ) -> LensTokens:
        """What the lens says of some features, whether or not the whole lens is there.

        Raises:
            UnknownFeature: The dictionary does not have it.
        """
        check(dictionary, features)
        if (whole := self._lens_at_hand(self._lens_key(dictionary))) is not None:
            return chosen(whole.tokens, list(features))
        read = at_once(lambda: lens(self.hosted, dictionary, features))
        return drained(self.background, read, patience)

    def _lens_at_hand(self, key: str) -> Lens | None:
        if (kept := self._lenses.get(key)) is not None:
            return kept
        tokens = self._files.read(key)
        return None if tokens is None else self._kept(key, tokens)

    def _kept(self, key: str, tokens: LensTokens) -> Lens:
        made = Lens.of(tokens)
        self._lenses.put(key, made, made.nbytes)
        return made

    def _lens_key(self, dictionary: Dictionary) -> str:
        parts = (self.hosted.fingerprint, str(self.hosted.dtype), dictionary.digest)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def check(dictionary: Dictionary, features: Sequence[int]) -> None:
    """UnknownFeature, naming the first that the dictionary does not have."""
    for feature in features:
        if not 0 <= feature < dictionary.features:
            raise UnknownFeature(dictionary.id, feature, dictionary.features)


def collected(
    steps: Generator[ScoreStep, None, None],
) -> Generator[ScoreStep, None, tuple[Score, ...]]:
    """The same steps; at the end all their scores."""
    found: list[Score] = []
    for step in steps:
        found += step.scores
        yield step
    return tuple(found)


def as_record(score: Score) -> FeatureScore:
    """As the registry keeps it."""
    return FeatureScore(**{name: getattr(score, name) for name in _NAMES})


def as_score(record: FeatureScore) -> Score:
    """As the steerers know it."""
    told: dict[str, Any] = {name: getattr(record, name) for name in _NAMES}
    return Score(**told)


_NAMES = tuple(f.name for f in fields(FeatureScore))
