"""Long work on dictionaries: scores of many features, snippets of a sample of texts.

What a scores job has finished is kept step by step, so that a job that is taken up again begins
where it was lost. A sample is seen only once it is whole.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.progress import Progress
from service.dictionaries import Dictionaries, ScoreStep
from service.jobs import Task
from service.registry import Registry
from service.registry.records import FeatureSnippets, Job
from service.registry.tables import canonical
from steerers.activations import Activations, collect
from steerers.dictionary import Dictionary
from steerers.input_score import InputSettings, input_score
from steerers.lens import LensTokens, lens_of_all
from steerers.score import STRONG, USABLE, ScoreSettings
from steerers.snippets import Windows, windows

SCORE, SNIPPETS = "score", "snippets"
_AT_ONCE = 64
"""Features whose snippets are spelt and written at a time."""


@dataclass(frozen=True, kw_only=True)
class LensStep(Progress):
    """The lens of the whole dictionary is there."""

    tokens: LensTokens


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a scores job ended: how many features it scored, and how many somebody had before."""

    scored: int
    skipped: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """What a snippets job found."""

    found: Activations
    windows: Windows
    lens: LensTokens


@dataclass(frozen=True, kw_only=True)
class FeatureJobs:
    """The jobs of one host's dictionaries.

    Attributes:
        corpus: The model's own texts, for samples that bring none.
    """

    dictionaries: Dictionaries
    registry: Registry
    corpus: Callable[[], Sequence[str]]

    @property
    def tasks(self) -> dict[str, Task]:
        """By kind, for a `JobRunner`."""
        return {
            SCORE: Task(
                begin=self.score,
                keep=self._keep,
                end=self._scored,
                shares={"lens": (0.0, 0.3), "scores": (0.3, 1.0)},
            ),
            SNIPPETS: Task(
                begin=self.sample,
                keep=self._keep,
                end=self._sampled,
                shares={"lens": (0.0, 0.2), "activations": (0.2, 0.7), "snippets": (0.7, 1.0)},
            ),
        }

    # --- scores ----------------------------------------------------------------------------------

    def score(self, job: Job) -> Generator[Progress, None, Scoring]:
        """Score the features of the job that nobody has scored; all of them if it names none."""
        dictionary, settings = self._dictionary(job), settings_of(job)
        asked = job.payload["features"]
        wanted = range(dictionary.features) if asked is None else sorted(set(asked))
        had = self.registry.scores.scored(self.dictionaries.measure(dictionary, settings))
        missing = [feature for feature in wanted if feature not in had]
        known = self.dictionaries.known_lens(dictionary)
        every = asked is None
        return self._scoring(dictionary, settings, missing, len(wanted), known, every=every)

    def _scoring(
        self,
        dictionary: Dictionary,
        settings: ScoreSettings,
        missing: Sequence[int],
        wanted: int,
        known: LensTokens | None,
        *,
        every: bool,
    ) -> Generator[Progress, None, Scoring]:
        """Whoever scores every feature computes the whole lens first: it is needed anyway."""
        if known is None and every:
            known = yield from self._lens(dictionary)
        skipped = wanted - len(missing)
        for step in self.dictionaries.scoring(dictionary, missing, settings, known):
            yield ScoreStep(
                stage=step.stage, done=step.done + skipped, total=wanted, scores=step.scores
            )
        return Scoring(scored=len(missing), skipped=skipped)

    def _lens(self, dictionary: Dictionary) -> Generator[Progress, None, LensTokens]:
        tokens = yield from lens_of_all(self.dictionaries.hosted, dictionary)
        n = dictionary.features
        yield LensStep(stage="lens", done=n, total=n, tokens=tokens)
        return tokens

    def _keep(self, job: Job, step: Progress) -> None:
        if isinstance(step, LensStep):
            self.dictionaries.keep_lens(self._dictionary(job), step.tokens)
        if isinstance(step, ScoreStep):
            self.dictionaries.keep(self._dictionary(job), step.scores, settings_of(job))

    def _scored(self, job: Job, ended: Scoring) -> dict[str, Any]:
        dictionary, settings = self._dictionary(job), settings_of(job)
        measure = self.dictionaries.measure(dictionary, settings)
        covered = self.registry.scores.coverage(measure, (USABLE, STRONG))
        return {
            "sae": dictionary.id,
            "digest": dictionary.digest,
            "settings": self.dictionaries.told(settings),
            "scored": ended.scored,
            "skipped": ended.skipped,
            "coverage": {
                "features": dictionary.features,
                "scored": covered.scored,
                "usable": covered.reach[USABLE],
                "strong": covered.reach[STRONG],
            },
            "location": f"/v1/saes/{dictionary.id}/features",
        }

    # --- snippets --------------------------------------------------------------------------------

    def sample(self, job: Job) -> Generator[Progress, None, Sample]:
        """Find where each feature is strongest in the job's texts, or in the model's own."""
        dictionary = self._dictionary(job)
        needs_lens = not self.dictionaries.has_lens(dictionary)
        lens = None if needs_lens else self.dictionaries.lens(dictionary).tokens
        return self._sampling(dictionary, self._texts(job), job.payload, lens)

    def _sampling(
        self,
        dictionary: Dictionary,
        texts: Sequence[str],
        payload: Any,
        lens: LensTokens | None,
    ) -> Generator[Progress, None, Sample]:
        if lens is None:
            lens = yield from self._lens(dictionary)
        hosted, tokens = self.dictionaries.hosted, payload["tokens"]
        found = yield from collect(hosted, dictionary, texts, tokens=tokens)
        around = yield from windows(
            hosted, dictionary, texts, found, keep=payload["per_feature"], tokens=tokens
        )
        return Sample(found=found, windows=around, lens=lens)

    def _texts(self, job: Job) -> Sequence[str]:
        return self.corpus() if job.payload["texts"] is None else job.payload["texts"]

    def _sampled(self, job: Job, sample: Sample) -> dict[str, Any]:
        dictionary, texts, counting = self._dictionary(job), self._texts(job), counting_of(job)
        told = {
            "digest": hashlib.sha256(canonical(list(texts)).encode()).hexdigest(),
            "texts": len(texts),
            "tokens": sample.found.tokens,
            "own": job.payload["texts"] is None,
            "input_scores": {**asdict(counting), "digest": counting.digest},
        }
        kept = self.registry.snippets
        fingerprint = self.dictionaries.hosted.fingerprint
        number = kept.begin(job.tenant, fingerprint, dictionary.digest, told, actor=job.created_by)
        active = (sample.found.values[:, 0] > 0).nonzero()[:, 0].tolist()
        for start in range(0, len(active), _AT_ONCE):
            some = active[start : start + _AT_ONCE]
            kept.add(number, [self._around(sample, f, counting) for f in some])
        kept.finish(number)
        return {
            "sae": dictionary.id,
            "digest": dictionary.digest,
            "sample": told,
            "features": dictionary.features,
            "active": len(active),
            "location": f"/v1/saes/{dictionary.id}/features",
        }

    def _around(self, sample: Sample, feature: int, counting: InputSettings) -> FeatureSnippets:
        places = sample.found.most_active(feature)
        counted = input_score(feature, places, sample.lens.ids[feature].tolist(), counting)
        return FeatureSnippets(
            feature=feature,
            strongest=sample.found.max_activation(feature),
            input_score=counted.input_score,
            snippets=tuple(sample.windows.of(self.dictionaries.hosted, feature)),
        )

    def _dictionary(self, job: Job) -> Dictionary:
        return self.dictionaries.find(job.payload["sae"])


def settings_of(job: Job) -> ScoreSettings:
    """How a scores job measures."""
    return ScoreSettings(**job.payload["settings"])


def counting_of(job: Job) -> InputSettings:
    """How a snippets job counts input scores; jobs of older services do not say."""
    return InputSettings(**job.payload.get("settings", {}))
