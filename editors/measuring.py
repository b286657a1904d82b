"""A new version is measured on text: every tower that it changes, in its surroundings."""

from collections.abc import Generator, Sequence

from editors.delta import Delta
from editors.fact import Fact, Phrasing
from editors.fitting import in_space
from editors.joint import Named
from editors.moment import Corpus
from editors.neighbours import (
    PhraseBank,
    PhraseBanks,
)
from editors.probe import Probe
from editors.progress import Progress
from editors.report import Report, Thresholds, worst_of
from editors.templates import Phrasebook, phrasebook_of
from models.hosted import HostedModel
from models.text_tower import TextTower


def measure(  # noqa: PLR0913 - every part of the surroundings is stated by name
    hosted: HostedModel,
    fact: Fact,
    delta: Delta,
    *,
    banks: PhraseBanks,
    corpus: Corpus,
    others: Sequence[Named] = (),
    thresholds: Thresholds | None = None,
    book: Phrasebook | None = None,
) -> Generator[Progress, None, Report]:
    """Measure a delta; for two encoders, the worse value of each measure.

    Args:
        hosted: The model that the delta was fitted on.
        fact: What it was fitted to.
        delta: The change.
        banks: Phrases of corpora with their keys, shared by all measurements of a model.
        corpus: Of the second moment; its phrases are neighbours.
        others: The live edits of the model: their keys are compared, their subjects neighbours.
        thresholds: What decides whether it passed.
        book: The model's sentences; default: as `phrasebook_of` finds them.
    """
    limits, mode = thresholds or Thresholds(), str(delta.header.get("mode", ""))
    whole = book or phrasebook_of(hosted)
    space = str(delta.header.get("settings", {}).get("space", "projected"))
    probes = []
    for tower in hosted.text_towers.values():
        site = next(s for s in delta.factors if s.startswith(f"{tower.attribute}."))
        bank = yield from _bank(hosted, tower, site, corpus, banks, others)
        seen = in_space(tower, space)
        probes.append(Probe(hosted, seen, fact, delta, site, whole.of(mode), bank))
    reports = []
    for number, probe in enumerate(probes):
        yield Progress(stage="report", done=number, total=len(probes))
        reports.append(probe.report(others, limits, whole.origin(mode)))
    yield Progress(stage="report", done=len(reports), total=len(reports))
    return worst_of(reports)


def _bank(
    hosted: HostedModel,
    tower: TextTower,
    site: str,
    corpus: Corpus,
    banks: PhraseBanks,
    others: Sequence[Named],
) -> Generator[Progress, None, PhraseBank | None]:
    """The phrases around the site; None where no fact is written (an editor of another layer)."""
    blocks = [b for b in range(tower.n_blocks) if tower.fc2_site(b) == site]
    if not blocks:
        return None
    return (yield from banks.of(hosted, tower, blocks[0], corpus, _registered(others)))


def _registered(others: Sequence[Named]) -> list[Phrasing]:
    """The prompts of live edits; an imported adapter has none."""
    facts = [o.delta.header["fact"] for o in others if o.delta.header.get("fact")]
    return [Phrasing(prompt=f["prompt"], subject=f["subject"] or f["prompt"]) for f in facts]
