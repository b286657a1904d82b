"""Causal tracing of pictures: which layers' visual tokens carry the answer.

Clean and corrupted are two pictures under one question, told by equally many tokens, so that every
column means the same in both. The corrupted run is repeated with the visual tokens' stream of the
clean one written into it, all visual tokens at once:

- `visual`: behind layer l the clean stream of layer l. It is trivially whole in early layers and
  nothing once no later token reads the picture any more.
- `last`: the same at the last token, where the answer arrives.
- `back`: behind the layer `target` the clean stream of layer l above it, which is what
  back-patching does; here with another picture's stream, so that the answer can come from nowhere
  else.

effect = (m(restored) - m(corrupted)) / (m(clean) - m(corrupted)), m = logit(correct) -
logit(incorrect) at the last token. A row is a layer; rows share the corrupted run's keys and values
in front of the first visual token.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from evaluation.backpatch.example import Case, Example, prepare
from evaluation.backpatch.sweep import ROWS, Clean, Sweep
from evaluation.behaviours.pairs import Dropped
from evaluation.errors import UnusableExamples
from evaluation.tracing import Trace
from models.hosted import HostedModel
from models.slot_cache import PrefixCache


@dataclass(frozen=True, kw_only=True, eq=False)
class PicturePair:
    """Two pictures, a question, and two answers that bring no leading space.

    Attributes:
        clean, corrupted: One picture each, in RGB; a sequence, so that it can be decoded when it
            is looked at.
        correct: What the clean picture answers.
        incorrect: What the corrupted one does.
    """

    question: str
    clean: Sequence[Image]
    corrupted: Sequence[Image]
    correct: str
    incorrect: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureCases:
    """A pair in the model's tokens."""

    clean: Case
    corrupted: Case


def prepare_pictures(
    hosted: HostedModel, pairs: Sequence[PicturePair]
) -> tuple[tuple[PictureCases, ...], tuple[Dropped, ...]]:
    """The pairs that can be traced, and the others with their reasons.

    Of a model that sees nothing, none.
    """
    kept: list[PictureCases] = []
    dropped: list[Dropped] = []
    for row, pair in enumerate(pairs):
        try:
            clean = _case(hosted, pair, pair.clean, pair.correct)
            corrupted = _case(hosted, pair, pair.corrupted, pair.incorrect)
        except UnusableExamples as why:
            dropped.append(Dropped(row=row, reason=why.problem.removesuffix(".")))
            continue
        if clean.columns != corrupted.columns or clean.ids != corrupted.ids:
            counts = len(clean.columns), len(corrupted.columns)
            reason = f"the pictures have {counts[0]} and {counts[1]} tokens"
            dropped.append(Dropped(row=row, reason=reason))
            continue
        kept.append(PictureCases(clean=clean, corrupted=corrupted))
    return tuple(kept), tuple(dropped)


def _case(hosted: HostedModel, pair: PicturePair, shown: Sequence[Image], answer: str) -> Case:
    parts = [{"type": "image"}, {"type": "text", "text": pair.question}]
    example = Example(
        id="picture",
        messages=[{"role": "user", "content": parts}],
        pictures=shown,
        answer=answer,
        labels=(pair.correct, pair.incorrect),
    )
    return prepare(hosted, [example], "label").image[0]


def trace_pictures(
    hosted: HostedModel, pairs: Sequence[PictureCases], target: int = 0
) -> Iterator[Trace]:
    """Trace pairs of pictures, one by one.

    Args:
        hosted: A vision-language model.
        pairs: Of `prepare_pictures`.
        target: The layer behind which `back` writes.
    """
    sweep = Sweep(hosted, "label")
    for pair in pairs:
        runs = sweep.clean(pair.clean), sweep.clean(pair.corrupted)
        yield _Picture(sweep, pair, *runs).trace(target)


@dataclass(frozen=True, eq=False)
class _Picture:
    """One pair with both of its runs."""

    sweep: Sweep
    pair: PictureCases
    clean: Clean
    corrupted: Clean

    def trace(self, target: int) -> Trace:
        layers = range(self.sweep.layers)
        first = self.corrupted.first
        columns = [column - first for column in self.pair.corrupted.columns]
        last = [len(self.pair.corrupted.ids) - 1 - first]
        same = [(layer, layer) for layer in layers]
        found = {
            "visual": self._margins(same, columns),
            "last": self._margins(same, last),
            "back": self._margins([(max(layer, target), target) for layer in layers], columns),
        }
        return Trace(
            clean=float(self._margin(self.clean.logits[-1])),
            corrupted=float(self._margin(self.corrupted.logits[-1])),
            restored=found,
        )

    @torch.inference_mode()
    def _margins(
        self, places: Sequence[tuple[int, int]], columns: Sequence[int]
    ) -> Float[Tensor, " places"]:
        """The metric per (source, target), with the clean stream written at the columns."""
        found: list[Tensor] = []
        ordered = sorted(range(len(places)), key=lambda place: places[place][1])
        for start in range(0, len(ordered), ROWS):
            rows = [places[place] for place in ordered[start : start + ROWS]]
            found.append(self._margin(self._run(rows, columns)))
        margins = torch.cat(found)
        return margins[torch.tensor(ordered).argsort()].double()

    def _run(
        self, rows: Sequence[tuple[int, int]], columns: Sequence[int]
    ) -> Float[Tensor, "rows vocab"]:
        """Logits at the last token; targets ascend, and layers below the first are not run."""
        sweep, base = self.sweep, self.corrupted
        shown = [base.shown] * len(rows) if base.shown is not None else []
        cache = None if base.prefix is None else PrefixCache(base.prefix)
        begun = rows[0][1]
        stream = base.streams[begun].expand(len(rows), -1, -1).clone()
        going = sweep.family.passage(sweep.hosted, stream, cache, None, shown)
        writes = self._writes(rows)
        self._write(stream, writes.get(begun, ()), columns)
        for index in range(begun + 1, sweep.layers):
            stream = going.layer(index, stream)
            if index in writes:
                stream = stream.clone()
                self._write(stream, writes[index], columns)
        last = stream[:, -1:]
        return sweep.family.soft_cap(sweep.hosted, sweep.family.unembed(sweep.hosted, last))[:, 0]

    @staticmethod
    def _writes(rows: Sequence[tuple[int, int]]) -> Mapping[int, Sequence[tuple[int, int]]]:
        """By target which rows are written there, and from which source."""
        found: dict[int, list[tuple[int, int]]] = {}
        for row, (source, target) in enumerate(rows):
            found.setdefault(target, []).append((row, source))
        return found

    def _write(
        self, stream: Tensor, writes: Sequence[tuple[int, int]], columns: Sequence[int]
    ) -> None:
        for row, source in writes:
            stream[row, columns] = self.clean.streams[source][0, columns]

    def _margin(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows"]:
        right, wrong = self.pair.clean.answer[0], self.pair.corrupted.answer[0]
        return (logits[..., right] - logits[..., wrong]).float().cpu()
