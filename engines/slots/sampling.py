"""The next token of every row, each by its own settings and from its own generator.

Bias and penalties change a row's logits in place, then greedy rows take the largest and all others
are drawn together: temperature, top-k, top-p and min-p as tensors by row, and per row one number
from its own generator, looked up in its own distribution. So a row's draws do not depend on who
stands beside it. Order and meaning are those of transformers' logits processors.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from engines.slots.request import Sampling

_HEAD = 512
"""Most nuclei lie within so many largest probabilities; wider ones cost a sort of everything."""


@dataclass(frozen=True)
class Chosen:
    """A row's next token, and the log-probabilities that it asked for.

    Attributes:
        logprob: Of the token; None unless asked for.
        top: (token, log-probability), best first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Draws:
    """One row's sampling: its settings, its generator, and which tokens it has seen.

    Args:
        sampling: The settings.
        seed: Of the request.
        choice: The row's number among the request's texts.
        prompt: Its tokens, which the repetition penalty counts.
        vocab: Size of the vocabulary.
        logprobs: Alternatives per token; None for no log-probabilities.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        seed: int,
        choice: int,
        prompt: Sequence[int],
        vocab: int,
        logprobs: int | None = None,
    ) -> None:
        self.sampling, self.logprobs = sampling, logprobs
        self.generator = torch.Generator().manual_seed(row_seed(seed, choice))
        self._bias_ids = torch.tensor(list(sampling.logit_bias), dtype=torch.long)
        self._bias = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32)
        self._lot: float | None = None
        self._counts: Int[Tensor, " vocab"] | None = None
        self._occurred: Bool[Tensor, " vocab"] | None = None
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts = torch.zeros(vocab, dtype=torch.int32)
        if sampling.repetition_penalty != 1:
            self._occurred = torch.zeros(vocab, dtype=torch.bool)
            self._occurred[list(prompt)] = True

    @property
    def shapes(self) -> bool:
        """Whether the row's logits are changed before a token is chosen."""
        there = self._counts is not None or self._occurred is not None
        return there or bool(self.sampling.logit_bias)

    def shape(self, logits: Float[Tensor, " vocab"]) -> None:
        """Bias and penalties, in place."""
        stated = self.sampling
        if stated.logit_bias:
            logits[self._bias_ids] += self._bias
        if self._occurred is not None:
            by = stated.repetition_penalty
            punished = torch.where(logits < 0, logits * by, logits / by)
            torch.where(self._occurred, punished, logits, out=logits)
        if self._counts is not None:
            logits -= stated.presence_penalty * (self._counts > 0)
            logits -= stated.frequency_penalty * self._counts

    def took(self, token: int) -> None:
        """The row goes on with this token; until then its choice can be repeated."""
        self._lot = None
        if self._counts is not None:
            self._counts[token] += 1
        if self._occurred is not None:
            self._occurred[token] = True

    def uniform(self) -> float:
        """The row's number in [0, 1) for its next token."""
        if self._lot is None:
            self._lot = float(torch.rand((), generator=self.generator, dtype=torch.float64))
        return self._lot


def row_seed(seed: int, choice: int) -> int:
    """Of a row's own generator: texts of one request do not begin alike."""
    drawn = hashlib.sha256(f"{seed}:{choice}".encode()).digest()
    return int.from_bytes(drawn[:8], "big") >> 1


def choose(logits: Float[Tensor, "rows vocab"], rows: Sequence[Draws]) -> list[Chosen | None]:
    """Per row its next token; None where the logits, as said or as shaped, are not finite.

    Nothing goes on by that: the same choice comes out again until a row `took` its token.
    """
    logits = logits.cpu()
    largest, tokens = logits.max(dim=-1)
    finite = torch.isfinite(largest).tolist()
    shaped, changed = logits, [i for i, row in enumerate(rows) if row.shapes and finite[i]]
    if changed:
        shaped = logits.to(torch.float32, copy=True)
        for i in changed:
            rows[i].shape(shaped[i])
        largest, tokens[changed] = shaped[changed].max(dim=-1)
        for i, fine in zip(changed, torch.isfinite(largest).tolist(), strict=True):
            finite[i] = fine
    lots = [i for i, row in enumerate(rows) if row.sampling.temperature > 0 and finite[i]]
    if lots:
        tokens[lots], fine = _drawn(shaped[lots], [rows[i] for i in lots])
        for i, drawn in zip(lots, fine.tolist(), strict=True):
            finite[i] = drawn
    told = _told(logits, tokens, rows, finite)
    return [
        told.get(i, Chosen(token)) if finite[i] else None for i, token in enumerate(tokens.tolist())
    ]


def _told(
    logits: Float[Tensor, "rows vocab"],
    tokens: Int[Tensor, " rows"],
    rows: Sequence[Draws],
    finite: Sequence[bool],
) -> dict[int, Chosen]:
    """The rows that asked for log-probabilities: those of the model's own distribution."""
    asked = [i for i, row in enumerate(rows) if row.logprobs is not None and finite[i]]
    if not asked:
        return {}
    logs = logits[asked].float().log_softmax(dim=-1)
    most = min(max(rows[i].logprobs or 0 for i in asked), logs.shape[1])
    values, ids = logs.topk(most, dim=-1)
    own = logs.gather(1, tokens[asked, None])[:, 0].tolist()
    found = {}
    for place, (i, best) in enumerate(zip(asked, ids.tolist(), strict=True)):
        pairs = zip(best, values[place].tolist(), strict=True)
        top = tuple(pairs)[: rows[i].logprobs]
        found[i] = Chosen(int(tokens[i]), own[place], top)
    return found


def _drawn(
    logits: Float[Tensor, "rows vocab"], rows: Sequence[Draws]
) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Inverse-transform sampling: the first token at which the cumulated probability passes u.

    Also whether each row had probabilities at all; one without has no token to speak of.
    """
    weights = distribution(logits.float(), [row.sampling for row in rows]).double()
    cumulated = weights.cumsum(dim=-1)
    drawn = torch.tensor([[row.uniform()] for row in rows], dtype=torch.float64)
    total = cumulated[:, -1:]
    target = torch.minimum(drawn * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulated, target, right=True)[:, 0]
    return found.clamp(max=logits.shape[1] - 1), torch.isfinite(total[:, 0])


def distribution(
    logits: Float[Tensor, "rows vocab"], settings: Sequence[Sampling]
) -> Float[Tensor, "rows vocab"]:
    """What tokens are drawn from; settings with temperature above 0."""
    heat = torch.tensor([[s.temperature] for s in settings])
    # The largest first becomes 0: no temperature, however small, makes it infinite.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / heat
    logits = _top_k(logits, [s.top_k for s in settings])
    weights = _top_p(logits.softmax(dim=-1), [s.top_p for s in settings])
    if any(s.min_p > 0 for s in settings):
        share = torch.tensor([[s.min_p] for s in settings])
        weights = weights.masked_fill(weights < share * weights.amax(-1, keepdim=True), 0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


def _top_k(logits: Float[Tensor, "rows vocab"], most: Sequence[int]) -> Tensor:
    at = [i for i, k in enumerate(most) if 0 < k < logits.shape[1]]
    if not at:
        return logits
    largest = logits[at].topk(max(most[i] for i in at), dim=-1).values
    last = torch.tensor([[most[i] - 1] for i in at])
    kept = logits[at].masked_fill(logits[at] < largest.gather(1, last), -torch.inf)
    return logits.index_copy(0, torch.tensor(at), kept)


def _top_p(weights: Float[Tensor, "rows vocab"], shares: Sequence[float]) -> Tensor:
    at = [i for i, share in enumerate(shares) if share < 1]
    if not at:
        return weights
    share = torch.tensor([[shares[i]] for i in at], dtype=torch.float64)
    held, size = weights[at], weights.shape[1]
    floor, inside = _nucleus(held, share, min(_HEAD, size))
    if not bool(inside.all()):
        wide = ~inside[:, 0]
        floor[wide] = _nucleus(held[wide], share[wide], size)[0]
    return weights.index_copy(0, torch.tensor(at), held.masked_fill(held < floor, 0.0))


def _nucleus(
    weights: Float[Tensor, "rows vocab"], share: Float64[Tensor, "rows 1"], size: int
) -> tuple[Float[Tensor, "rows 1"], Bool[Tensor, "rows 1"]]:
    """The least probability inside each row's nucleus, and whether `size` tokens hold it."""
    largest = weights.topk(size, dim=-1).values
    cumulated = largest.double().cumsum(dim=-1)
    before = cumulated - largest.double()
    last = (before < share).sum(dim=-1, keepdim=True).clamp(min=1) - 1
    whole = size == weights.shape[1]
    return largest.gather(1, last), (cumulated[:, -1:] >= share) | whole
