"""Output scores of many features at once (Arad et al. 2025): only the last position runs again.

The reference encodes the token, raises one code by s * A, decodes, and adds the error that decoding
made before. That is x + s * A * d_f, A = the token's largest code: no decoder pass, and one encoder
pass per dictionary. All features share A and the prompt's keys and values, so a batch of features
is a batch of last tokens.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.hosted import HostedModel
from models.patch import Patch, Shift
from models.progress import Progress
from steerers.dictionary import Dictionary
from steerers.errors import UnknownFeature
from steerers.lens import language_of, lens, tile_rows
from steerers.prompted import Prompted, prompted
from steerers.score import REFERENCE, Neutral, RowStatistics, Score, ScoreSettings, statistics

BATCH = 256
"""Features that run through the layers together."""
_ROWS = 4
"""Rows of logits that are looked at together: few enough to stay in a cache."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Records that are finished, and how far the work is."""

    scores: tuple[Score, ...]
    progress: Progress


def neutral_of(read: Prompted, dictionary: Dictionary) -> Neutral:
    """What the last token of a prompt says at the dictionary's site, unsteered."""
    x = read.last(dictionary.site).float().to(dictionary.decoder.device)
    p_max = read.logits.double().softmax(0).amax()
    return Neutral(
        a_max=dictionary.a_max(x),
        stream_norm=float(x.norm()),
        p_max=float(p_max) if bool(torch.isfinite(p_max)) else None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """One dictionary on one model under one way of measuring.

    Attributes:
        read: The neutral prompt, if somebody read it already (one reading serves all sites); it
            must have been read under the settings' own prompt and keep the dictionary's site.

    Raises:
        MethodNotApplicable, UnknownSite, WrongDictionary: At construction.
    """

    hosted: HostedModel
    dictionary: Dictionary
    settings: ScoreSettings = REFERENCE
    read: Prompted | None = None

    def __post_init__(self) -> None:
        language_of(self.hosted)
        self.dictionary.check(self.hosted)

    @cached_property
    def prompt(self) -> Prompted:
        """The neutral prompt, read once, as it is."""
        if self.read is not None:
            return self.read
        ids = language_of(self.hosted).tokenize(self.hosted, self.settings.prompt)
        return prompted(self.hosted, ids, [self.dictionary.site])

    @cached_property
    def neutral(self) -> Neutral:
        """A, the stream's norm and the likeliest token's probability, unsteered."""
        return neutral_of(self.prompt, self.dictionary)

    @cached_property
    def _base(self) -> Prompted:
        """What is steered: the prompt as it is, or as the SAE reconstructs it."""
        if not self.settings.reconstruct:
            return self.prompt
        site = self.dictionary.site
        x = self.prompt.streams[site].float().to(self.dictionary.decoder.device)
        rebuilt = self.dictionary.decode(self.dictionary.encode(x), x)
        moves = (Shift(site=site, vector=rebuilt[t] - x[t], positions=(t,)) for t in range(len(x)))
        return prompted(self.hosted, self.prompt.ids, [site], Patch(tuple(moves)))

    @torch.inference_mode()
    def score(
        self, features: Sequence[int], known: Int[Tensor, "n found"] | None = None
    ) -> tuple[Score, ...]:
        """The records of a batch of features, in their order.

        Args:
            features: Their numbers.
            known: Their lens tokens, largest first, where somebody has looked already: half of the
                work behind a late layer. Fewer than the settings ask for are looked up again.

        Raises:
            UnknownFeature: Of a number that the dictionary does not have.
        """
        self._check(features)
        chosen = torch.tensor(features, dtype=torch.long)
        tokens = self._lens_tokens(features, known)
        ends = self._base.ended(self.dictionary.site, self._steered(chosen))
        told = self._told(ends, tokens.to(ends.device))
        output = told.output
        if self.settings.subtract_prior:
            output = output - self._prior(tokens.to(ends.device)).output
        columns = (output, told.peak, told.above, told.p_max, told.finite)
        rows = zip(features, tokens.tolist(), *(c.tolist() for c in columns), strict=True)
        return tuple(self._record(*row) for row in rows)

    def _lens_tokens(
        self, features: Sequence[int], known: Int[Tensor, "n found"] | None
    ) -> Int[Tensor, "n k"]:
        k = min(self.settings.tokens, language_of(self.hosted).vocab_size(self.hosted))
        if known is not None and known.shape[1] >= k:
            return known[:, :k]
        return lens(self.hosted, self.dictionary, features, k).ids

    def _check(self, features: Sequence[int]) -> None:
        for feature in features:
            if not 0 <= feature < self.dictionary.features:
                raise UnknownFeature(self.dictionary.id, feature, self.dictionary.features)

    @cached_property
    def _x(self) -> Float[Tensor, " d"]:
        """The plain token in float32, where the dictionary is."""
        there = self.dictionary.decoder.device
        return self.prompt.last(self.dictionary.site).float().to(there)

    def _steered(self, features: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Move the token by s * A * d_f; the change is in float32, the sum in the model's dtype."""
        dictionary, base = self.dictionary, self._base.last(self.dictionary.site)
        rows = dictionary.decoder[features.to(dictionary.decoder.device)]
        amount = self.settings.factor * self.neutral.a_max * dictionary.output_scale(self._x)
        return base + (amount * rows).to(device=base.device, dtype=base.dtype)

    def _told(self, ends: Float[Tensor, "rows d"], tokens: Int[Tensor, "rows k"]) -> RowStatistics:
        """Unembed in tiles; of each row of logits only a few numbers stay."""
        family, parts = language_of(self.hosted), []
        tile = tile_rows(self.hosted)
        for end, ids in zip(ends.split(tile), tokens.split(tile), strict=True):
            logits = family.headed(self.hosted, end)
            for row, wanted in zip(logits.split(_ROWS), ids.split(_ROWS), strict=True):
                parts.append(statistics(row.float(), wanted, family.cap(self.hosted)))
        return RowStatistics.joined(parts)

    def _prior(self, tokens: Int[Tensor, "rows k"]) -> RowStatistics:
        """The same formula, unsteered: on the plain prompt."""
        logits = self.prompt.logits
        parts = [statistics(logits.expand(len(ids), -1), ids) for ids in tokens.split(_ROWS)]
        return RowStatistics.joined(parts)

    def _record(  # noqa: PLR0913, PLR0917 - one row of the columns
        self,
        feature: int,
        tokens: list[int],
        output: float,
        peak: float,
        rank: int,
        p_max: float,
        finite: bool,
    ) -> Score:
        neutral = self.neutral
        return Score(
            feature=feature,
            output_score=output if finite else None,
            peak=peak if finite else None,
            rank=rank if finite else None,
            p_max_before=neutral.p_max,
            p_max_after=p_max if finite else None,
            a_max=neutral.a_max,
            tokens=tuple(tokens),
            reason="" if finite else "the steered logits are not finite.",
        )


def scores(
    scorer: Scorer,
    features: Sequence[int],
    batch: int = BATCH,
    known: Int[Tensor, "n found"] | None = None,
) -> Generator[Scored, None, None]:
    """Score many features, batch by batch: what was yielded is finished and can be stored.

    After a crash, ask again for the features that have no record yet. `known` are lens tokens, as
    `Scorer.score` takes them.
    """
    for start in range(0, len(features), batch):
        part = features[start : start + batch]
        told = None if known is None else known[start : start + batch]
        found, done = scorer.score(part, told), start + len(part)
        yield Scored(
            scores=found, progress=Progress(stage="scores", done=done, total=len(features))
        )
