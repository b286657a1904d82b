"""Measurements of SAE features as handles: swapped, beside matched ones, and steered.

Codes of base and counterfactual are computed once for all features. Steering is what a request
does, `x += c * d_f`; c = strength * A, A being the largest code at the neutral prompt's last token.
Features of a set share c, so that a large set is not a strong one.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.variables.clean import Rows
from evaluation.variables.featurizers import FULL, Codes, Featurizer
from evaluation.variables.fitting import seed_of
from evaluation.variables.interchange import Change
from evaluation.variables.objective import Checker
from evaluation.variables.score import accuracies
from evaluation.variables.trials import Trial, Trials
from evaluation.variables.units import Unit, language
from models.patch import Patch, Shift
from models.progress import Progress
from steerers.dictionary import Dictionary
from steerers.output_score import Scorer

_ROWS = 64
_TEXTS = 8
_LONGEST = 128
_LIKE = 32
"""Features among which matched ones are drawn: the nearest by how far they move the stream."""

Features = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Meter:
    """One dictionary on the rows of one study.

    Attributes:
        trials: Rows with one unit, the dictionary's layer at a position.
        strength: Of steering, in units of A.
    """

    trials: Trials
    dictionary: Dictionary
    checker: Checker
    new_tokens: int
    strength: float

    @property
    def unit(self) -> Unit:
        """Where everything happens."""
        return self.trials.units[0]

    @cached_property
    def scorer(self) -> Scorer:
        """Of output scores."""
        return Scorer(hosted=self.trials.hosted, dictionary=self.dictionary)

    @cached_property
    def coefficient(self) -> float:
        """The c of steering."""
        return self.strength * self.scorer.neutral.a_max

    @cached_property
    def no_op(self) -> float:
        """The share of rows whose expected answer is the base's own."""
        swaps, variable = self.trials.table.swaps, self.trials.table.variable
        same = [self.checker(s.expected_text[variable], s.base_answer_text) for s in swaps]
        return float(np.mean(same))

    def accuracies(
        self, sets: Sequence[Features]
    ) -> Generator[Progress, None, Float[np.ndarray, "trials rows"]]:
        """1 or 0 per row: first of swapping the whole unit, then of each set."""
        codes = Codes(dictionary=self.dictionary)
        changes: list[Change] = [FULL]
        changes += [Featurizer(kind="sae", features=codes).choosing(some) for some in sets]
        wanted = [Trial((self.unit,), (change,)) for change in changes]
        found = yield from accuracies(self.trials, wanted, self.new_tokens, self.checker)
        return found

    def matched(self, features: Features, draws: int, seed: int) -> list[Features]:
        """Random sets of equal number whose members move the stream as far as these do."""
        generator = torch.Generator().manual_seed(seed_of(seed, f"matched {features}"))
        reach = self._reach
        pools = [self._like(feature, features, reach) for feature in features]
        found = []
        for _ in range(draws):
            chosen: list[int] = []
            for pool in pools:
                left = [i for i in pool if i not in chosen]
                place = int(torch.randint(len(left), (1,), generator=generator))
                chosen.append(left[place])
            found.append(tuple(sorted(chosen)))
        return found

    def effect(self, features: Features) -> Float[np.ndarray, " some"]:
        """By how much steering raises logit(expected) - logit(base's answer), first tokens.

        Of rows whose counterfactual has more of a feature than the base; with several features, a
        row is steered with those that it has more of.
        """
        more = self._differences[:, 0, list(features)] > 0
        rows = more.any(1).nonzero().flatten()
        decoder = self.dictionary.decoder[list(features)]
        share = more / more.sum(1, keepdim=True).clamp_min(1)
        moves = self.coefficient * share @ decoder
        found = [self._raised(index, moves[index]) for index in rows.split(_ROWS) if len(index)]
        return np.concatenate(found) if found else np.zeros(0)

    @torch.no_grad()
    def off_target(self, features: Features, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """KL(plain, steered) of each text, in nats per token; every token is steered."""
        hosted = self.trials.hosted
        family = language(hosted)
        ids = [family.tokenize(hosted, text)[:_LONGEST] for text in texts]
        ids = [row for row in ids if row]
        vector = self.coefficient * self.dictionary.decoder[list(features)].mean(0)
        patch = Patch((Shift(site=self.dictionary.site, vector=vector, positions="all"),))
        found: list[float] = []
        for start in range(0, len(ids), _TEXTS):
            rows = Rows.of(ids[start : start + _TEXTS], hosted.device)
            plain = family.logits(hosted, rows.ids).log_softmax(-1)
            with hosted.planned([patch] * len(rows)):
                steered = family.logits(hosted, rows.ids).log_softmax(-1)
            each = (plain.exp() * (plain - steered)).sum(-1)
            real = torch.arange(each.shape[1], device=each.device) < rows.lengths[:, None]
            found += ((each * real).sum(1) / rows.lengths).tolist()
        return np.array(found)

    def output_scores(self, features: Features) -> list[float | None]:
        """Of each feature."""
        return [score.output_score for score in self.scorer.score(features)]

    @property
    def _held(self) -> tuple[Float[Tensor, "rows k d"], Float[Tensor, "rows k d"]]:
        """The unit in the bases and in the counterfactuals."""
        one, trials = [self.unit], self.trials
        return trials.bases(one)[self.unit], trials.sources(one)[self.unit]

    @cached_property
    def _differences(self) -> Float[Tensor, "rows k features"]:
        """Of all codes at the unit, counterfactual minus base."""
        codes = Codes(dictionary=self.dictionary)
        base, source = self._held
        return codes.differences(base, source)

    @cached_property
    def _reach(self) -> Float[Tensor, " features"]:
        """How far a swap of each feature moves the stream, on average."""
        moved = self._differences.abs().mean((0, 1))
        return (moved * self.dictionary.decoder.norm(dim=1)).cpu()

    def _like(self, feature: int, features: Features, reach: Tensor) -> list[int]:
        """The features that reach most nearly as far, none of the set."""
        distance = (reach - reach[feature]).abs()
        distance[list(features)] = torch.inf
        n = min(max(_LIKE, 2 * len(features)), self.dictionary.features - len(features))
        return distance.argsort(stable=True)[:n].tolist()

    @torch.no_grad()
    def _raised(
        self, index: Int[Tensor, " some"], moves: Float[Tensor, "some d"]
    ) -> Float[np.ndarray, " some"]:
        steered = Trial((self.unit,), (lambda x, _: x + moves[:, None].to(x.dtype),))
        plain = Trial((self.unit,), (lambda x, _: x,))
        before, after = self._metric(plain, index), self._metric(steered, index)
        return (after - before).cpu().numpy()

    def _metric(self, trial: Trial, index: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        swaps = [self.trials.table.swaps[i] for i in index.tolist()]
        variable = self.trials.table.variable
        pairs = [(s.expected[variable][0], s.base_answer[0]) for s in swaps]
        logits = self.trials.logits([trial], index)[0, :, 0]
        picked = logits.gather(1, torch.tensor(pairs, device=logits.device))
        return (picked[:, 0] - picked[:, 1]).double()
