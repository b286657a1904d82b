"""Many plans of back-patching for one question, from one look and one clean pass.

The vision tower runs once, the clean pass keeps every stream and the keys and values in front of
the patched columns. A plan then costs the layers above its smallest target, at the columns from the
first patched one on; plans with the same smallest target are rows of one batch. The answer is read
under teacher forcing: a greedy answer is right exactly if every right token is the likeliest behind
the right ones before it, so no plan ever generates.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from evaluation.backpatch.example import Case, Metric, seeing
from models.hosted import HostedModel
from models.sight import Shown
from models.slot_cache import Prefix, PrefixCache
from steerers.methods.back_patch import BackPatch

ROWS = 64
"""Plans that share a forward."""


@dataclass(frozen=True, kw_only=True, order=True)
class Place:
    """One plan of a grid."""

    source: int
    target: int
    window: int = 1

    def pairs(self, layers: int) -> tuple[tuple[int, int], ...]:
        """(source, target) of all that is written, inside the decoder."""
        reach = self.window // 2
        both = ((self.source + i, self.target + i) for i in range(-reach, reach + 1))
        return tuple((s, t) for s, t in both if t >= 0 and s < layers)

    def method(self) -> BackPatch:
        """The same as a request has it."""
        return BackPatch(source=self.source, target=self.target, window=self.window)


def grid(layers: int, windows: Sequence[int] = (1,)) -> tuple[Place, ...]:
    """Every source above every target, for every window.

    The paper keeps sources to the upper half and targets to the lower, but seven of its fifteen
    best plans lie outside: nothing is left out here.
    """
    return tuple(
        Place(source=source, target=target, window=window)
        for window in windows
        for target in range(layers)
        for source in range(target + 1, layers)
    )


@dataclass(frozen=True, eq=False)
class Clean:
    """What one clean pass left.

    Attributes:
        streams: Behind each layer (1, tokens, d), columns from `first` on.
        prefix: Keys and values of the columns in front; None where there are none.
        logits: Behind the prompt and each token of the answer (answer + 1, vocab).
    """

    first: int
    streams: tuple[Tensor, ...]
    prefix: Prefix | None
    shown: Shown | None
    tokens: tuple[int, ...]
    logits: Float[Tensor, "asked vocab"]


def right(
    case: Case, metric: Metric, logits: Float[Tensor, "*plans asked vocab"]
) -> Bool[Tensor, "*plans"]:
    """Whether the answer is right, given the logits behind the prompt and each answer token."""
    if metric == "label":
        labels = torch.tensor(case.labels, device=logits.device)
        best = logits[..., 0, :].index_select(-1, labels).argmax(dim=-1)
        return labels[best] == case.answer[0]
    said = logits.argmax(dim=-1)
    wanted = torch.tensor(case.answer, device=logits.device)
    ends = torch.tensor(sorted(case.ends), device=logits.device)
    ended = torch.isin(said[..., -1], ends) if len(ends) else torch.ones_like(said[..., -1] > 0)
    return (said[..., :-1] == wanted).all(dim=-1) & ended


class Sweep:
    """Plans for the cases of one model, which nobody else may use meanwhile.

    Args:
        hosted: The model.
        metric: What counts as right.
        rows: Plans that share a forward.
    """

    def __init__(self, hosted: HostedModel, metric: Metric, rows: int = ROWS) -> None:
        self.hosted, self.rows = hosted, rows
        self.metric: Metric = metric
        self.family = seeing(hosted)
        self.decoder = self.family.decoder(hosted)
        self.layers = len(self.decoder.layers)

    @torch.inference_mode()
    def clean(self, case: Case) -> Clean:
        """Look once, and pass once through all layers."""
        hosted, family = self.hosted, self.family
        tokens = (*case.ids, *case.answer) if self.metric == "exact" else case.ids
        ids = torch.tensor([tokens], device=hosted.device)
        shown = case.shown(hosted)
        rows = [shown] if shown is not None else []
        first = self._first(case)
        cache = family.new_cache(hosted, 1, len(tokens))
        cache.open((0,), (0,), len(tokens))
        positions = torch.arange(len(tokens), device=hosted.device)[None]
        stream = family.embed(hosted, ids, positions, rows)
        going = family.passage(hosted, stream, cache, positions, rows)
        streams = []
        for index in range(self.layers):
            stream = going.layer(index, stream)
            streams.append(stream[:, first:])
        return Clean(
            first=first,
            streams=tuple(streams),
            prefix=cache.copy_prefix(0, first) if first else None,
            shown=shown,
            tokens=tokens,
            logits=self._logits(case, stream[:, first:], first)[0],
        )

    def baseline(self, case: Case, clean: Clean) -> bool:
        """Whether the unpatched answer is right."""
        return bool(right(case, self.metric, clean.logits))

    def answers(self, case: Case, clean: Clean, places: Sequence[Place]) -> dict[Place, bool]:
        """Per plan whether the answer is right."""
        found: dict[Place, bool] = {}
        for some in self.answered(case, clean, places):
            found |= some
        return found

    def answered(
        self, case: Case, clean: Clean, places: Sequence[Place]
    ) -> Iterator[dict[Place, bool]]:
        """The same forward by forward."""
        for some in self._together(places):
            hits = right(case, self.metric, self.logits(case, clean, some)).tolist()
            yield dict(zip(some, hits, strict=True))

    @torch.inference_mode()
    def logits(
        self, case: Case, clean: Clean, places: Sequence[Place]
    ) -> Float[Tensor, "plans asked vocab"]:
        """Behind the prompt and each answer token, for plans with one smallest target."""
        ends = [{t: s for s, t in place.pairs(self.layers)} for place in places]
        begun = min(ends[0])
        if any(min(of) != begun for of in ends):
            raise ValueError("These plans begin behind different layers.")
        columns = [column - clean.first for column in case.columns]
        rows = [clean.shown] * len(places) if clean.shown is not None else []
        cache = None if clean.prefix is None else PrefixCache(clean.prefix)
        stream = clean.streams[begun].expand(len(places), -1, -1).clone()
        going = self.family.passage(self.hosted, stream, cache, None, rows)
        _write(stream, begun, ends, columns, clean.streams)
        for index in range(begun + 1, self.layers):
            stream = going.layer(index, stream)
            if any(index in of for of in ends):
                stream = stream.clone()
                _write(stream, index, ends, columns, clean.streams)
        return self._logits(case, stream, clean.first)

    def _together(self, places: Sequence[Place]) -> Iterator[list[Place]]:
        alike: dict[int, list[Place]] = defaultdict(list)
        for place in places:
            alike[min(t for _, t in place.pairs(self.layers))].append(place)
        for some in alike.values():
            for start in range(0, len(some), self.rows):
                yield some[start : start + self.rows]

    def _first(self, case: Case) -> int:
        """The first column that a plan can change: what is joint with a patched one is, too."""
        first = case.columns[0]
        for begin, end in case.sight.joint if case.sight is not None else ():
            if begin < first < end:
                first = begin
        return first

    def _logits(self, case: Case, stream: Tensor, first: int) -> Float[Tensor, "plans asked vocab"]:
        last = len(case.ids) - 1 - first
        asked = len(case.answer) + 1 if self.metric == "exact" else 1
        behind = stream[:, last : last + asked]
        return self.family.soft_cap(self.hosted, self.family.unembed(self.hosted, behind))


def _write(
    stream: Tensor,
    index: int,
    ends: Sequence[Mapping[int, int]],
    columns: Sequence[int],
    clean: Sequence[Tensor],
) -> None:
    """Write each row's clean later stream into it, behind the layer."""
    for row, source_of in enumerate(ends):
        if index in source_of:
            stream[row, columns] = clean[source_of[index]][0, columns]
