"""What can be measured of a change that states no fact: how large it is, not whether it is right.

An imported LoRA says neither what it should change nor what it should leave alone, so there is no
efficacy, generality or specificity. Its size is measured on texts, through the path that requests
take.
"""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.delta import Delta, Factors
from editors.moment import Corpus
from editors.progress import Progress
from editors.templates import phrasebook_of
from models.hosted import HostedModel
from models.patch import LowRank, Operation, Patch
from models.text_tower import TextTower

SAMPLE = 256
"""Texts of the corpus that the leak is measured on, evenly spread."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SiteSize:
    """How large the change of one linear layer is.

    Attributes:
        norm: Frobenius norm of the change.
        relative: The same over the norm of the layer's weight.
        leak: Root mean square change over texts of the corpus, relative to the layer's own output.
    """

    rank: int
    norm: float
    relative: float
    leak: float


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """The measures of a change without a fact.

    Attributes:
        sites: By site.
        leak: The largest of any site.
        drift: Mean relative change of the last states of neutral captions, all positions; of two
            encoders the larger.
        why: Why nothing else was measured.
    """

    sites: dict[str, SiteSize]
    leak: float
    drift: float
    why: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON values; `passed` is None, for nothing was asked."""
        return {**asdict(self), "passed": None, "failed": []}


def measure_adapter(
    hosted: HostedModel, delta: Delta, corpus: Corpus, why: str
) -> Generator[Progress, None, AdapterReport]:
    """Measure a delta whatever made it; a batch of texts a step."""
    texts = corpus.texts[:: max(1, len(corpus.texts) // SAMPLE)][:SAMPLE]
    sums: dict[str, tuple[float, float]] = dict.fromkeys(delta.factors, (0.0, 0.0))
    for start in range(0, len(texts), _BATCH):
        for tower in hosted.text_towers.values():
            own = {s: f for s, f in delta.factors.items() if s.startswith(f"{tower.attribute}.")}
            found = _squares(hosted, tower, own, texts[start : start + _BATCH])
            sums |= {s: (sums[s][0] + a, sums[s][1] + b) for s, (a, b) in found.items()}
        yield Progress(stage="report", done=min(start + _BATCH, len(texts)), total=len(texts))
    sites = {s: size_of(hosted, s, f, *sums[s]) for s, f in sorted(delta.factors.items())}
    return AdapterReport(
        sites=sites,
        leak=max(size.leak for size in sites.values()),
        drift=max(_drift(hosted, tower, delta) for tower in hosted.text_towers.values()),
        why=why,
    )


def _squares(
    hosted: HostedModel, tower: TextTower, factors: dict[str, Factors], texts: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Per site: summed squares of the change and of the layer's own output, over all tokens."""
    if not factors:
        return {}
    tokens = tower.tokens(texts, cut=True)
    places = [place for site in factors for place in (site, f"{site}:out")]
    with torch.no_grad(), hosted.captured(*places) as seen:
        tower.module(input_ids=tokens.ids.to(hosted.device))
    attended = torch.arange(tokens.ids.shape[1])[None, :] <= tokens.eos[:, None]
    found = {}
    for site, f in factors.items():
        keys, own = (seen[p][0].cpu()[attended].double() for p in (site, f"{site}:out"))
        change = keys @ f.right.double().mT @ f.left.double().mT
        found[site] = (float(change.square().sum()), float(own.square().sum()))
    return found


def size_of(
    hosted: HostedModel, site: str, factors: Factors, change: float, own: float
) -> SiteSize:
    """A site's entry, from summed squares of the change and of the layer's own output."""
    weight = hosted.linears[site].weight
    assert isinstance(weight, Tensor)  # noqa: S101 - a linear layer has one
    norm = float(torch.linalg.matrix_norm(factors.left.double() @ factors.right.double()))
    return SiteSize(
        rank=factors.left.shape[1],
        norm=norm,
        relative=norm / max(1e-30, float(weight.detach().double().norm())),
        leak=(change / max(1e-30, own)) ** 0.5,
    )


def _drift(hosted: HostedModel, tower: TextTower, delta: Delta) -> float:
    # A planned change must reach its rows: of two encoders only the one that runs may be changed.
    own = tuple(o for o in delta.patch() if _of(o, tower))
    if not own:
        return 0.0
    texts = ["", *phrasebook_of(hosted).captions([], 40)]
    before = _last_states(hosted, tower, texts)
    with hosted.planned([Patch(own)] * len(texts)):
        after = _last_states(hosted, tower, texts)
    return float((after - before).norm() / before.norm())


def _of(operation: Operation, tower: TextTower) -> bool:
    return isinstance(operation, LowRank) and operation.site.startswith(f"{tower.attribute}.")


def _last_states(
    hosted: HostedModel, tower: TextTower, texts: Sequence[str]
) -> Float[Tensor, "n tokens d"]:
    last = f"{tower.tower}.block.{len(tower.blocks) - 1}"
    ids = tower.tokens(texts, pad="max").ids.to(hosted.device)
    with torch.no_grad(), hosted.captured(last) as seen:
        tower.module(input_ids=ids)
    return seen[last][0].double()
