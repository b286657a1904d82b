"""How large a change of a language model is: what can be said of an adapter that states no fact.

Measured on texts, through the path that requests take: per site the change against the layer's own
output, and how far the stream behind the last layer moves.
"""

from collections.abc import Generator, Sequence

import torch

from editors.adapter_report import AdapterReport, size_of
from editors.delta import Delta
from editors.moment import Corpus
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch
from models.progress import Progress

SAMPLE, TOKENS = 64, 64
"""Texts of the corpus, evenly spread, and tokens of each."""
NO_FACT = "A language model's adapter states no fact: only its size can be measured."


def measure_language_adapter(
    hosted: HostedModel, delta: Delta, corpus: Corpus
) -> Generator[Progress, None, AdapterReport]:
    """Measure a delta; a text a step."""
    family = hosted.family
    assert isinstance(family, Language)  # noqa: S101 - its caller hosts no other
    texts = corpus.texts[:: max(1, len(corpus.texts) // SAMPLE)][:SAMPLE]
    change = dict.fromkeys(delta.factors, 0.0)
    own = dict.fromkeys(delta.factors, 0.0)
    moved = still = 0.0
    for done, text in enumerate(texts, 1):
        ids = family.tokenize(hosted, text)[:TOKENS]
        for site, (of_change, of_own) in _squares(hosted, family, delta, ids).items():
            change[site] += of_change
            own[site] += of_own
        before, after = (_last(hosted, family, ids, p) for p in (Patch(), delta.patch()))
        moved += float((after - before).square().sum())
        still += float(before.square().sum())
        yield Progress(stage="report", done=done, total=len(texts))
    sites = {
        site: size_of(hosted, site, factors, change[site], own[site])
        for site, factors in sorted(delta.factors.items())
    }
    return AdapterReport(
        sites=sites,
        leak=max(size.leak for size in sites.values()),
        drift=(moved / max(1e-30, still)) ** 0.5,
        why=NO_FACT,
    )


@torch.no_grad()
def _squares(
    hosted: HostedModel, family: Language, delta: Delta, ids: Sequence[int]
) -> dict[str, tuple[float, float]]:
    """Per site: summed squares of the change and of the layer's own output, over the tokens."""
    places = [place for site in delta.factors for place in (site, f"{site}:out")]
    with hosted.captured(*places) as seen:
        family.logits(hosted, torch.tensor([list(ids)], device=hosted.device))
    found = {}
    for site, factors in delta.factors.items():
        keys, own = (seen[place][0].double().cpu() for place in (site, f"{site}:out"))
        change = keys @ factors.right.double().mT @ factors.left.double().mT
        found[site] = (float(change.square().sum()), float(own.square().sum()))
    return found


@torch.no_grad()
def _last(hosted: HostedModel, family: Language, ids: Sequence[int], patch: Patch) -> torch.Tensor:
    """The stream behind the last layer, (tokens, d)."""
    [(tower, layers)] = hosted.towers.items()
    site = f"{tower}.block.{len(layers) - 1}"
    with hosted.captured(site) as seen, hosted.planned([patch]):
        family.logits(hosted, torch.tensor([list(ids)], device=hosted.device))
    return seen[site][0][0].double().cpu()
