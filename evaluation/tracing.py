"""Causal tracing: what comes back when one place of a corrupted run is as in the clean run.

effect = (m(restored) - m(corrupted)) / (m(clean) - m(corrupted)), pair by pair through the hooks of
the model: a `Shift` by the difference of the two streams at one layer and token puts the clean
stream there, exactly, since nothing below it changed. All layers of a pair are rows of one forward.

Decoders have the metric logit(correct) - logit(incorrect) at the last token, text encoders the
cosine to the target's embedding minus that to the distractor's (Meng et al. 2022).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from editors.suffix import Meanings, embed_clean
from evaluation.behaviours.pairs import Dropped, Pair, PairIds
from models.decoder import TOWER
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch, Shift
from models.site import block
from models.text_tower import TextTower

ROWS = 64
"""Of one forward."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Tokens at which streams are restored, by name, and what is restored there.

    Attributes:
        subject: The last token in which the two prompts differ.
        last: The last token, or [EOS] of a text encoder.
    """

    subject: int
    last: int

    def named(self) -> Mapping[str, int]:
        """Both, by name."""
        return {"subject": self.subject, "last": self.last}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """One pair.

    Attributes:
        clean, corrupted: The metric of the two runs.
        restored: By name of the place, the metric with one layer's stream restored, per layer.
    """

    clean: float
    corrupted: float
    restored: Mapping[str, Float[Tensor, " layers"]]


def trace_decoder(hosted: HostedModel, pairs: Sequence[PairIds]) -> Iterator[Trace]:
    """Trace pairs of a language model, one by one."""
    family = hosted.family
    assert isinstance(family, Language)  # noqa: S101 - who prepared the pairs looked
    layers = len(hosted.towers[TOWER])
    sites = [block(TOWER, layer) for layer in range(layers)]

    @torch.inference_mode()
    def margins(ids: Sequence[int], rows: int, pair: PairIds) -> Tensor:
        told = torch.tensor([ids] * rows, device=hosted.device)
        logits = family.logits(hosted, told)[:, -1].float()
        return (logits[:, pair.correct] - logits[:, pair.incorrect]).cpu()

    for pair in pairs:
        runs: list[tuple[float, list[Tensor]]] = []
        for ids in (pair.clean, pair.corrupted):
            with hosted.captured(*sites) as seen:
                found = float(margins(ids, 1, pair)[0])
            runs.append((found, [seen[site][0][0].float() for site in sites]))
        places = _places(pair.clean, pair.corrupted, len(pair.clean) - 1)
        changes = {
            name: [a[at] - b[at] for a, b in zip(runs[0][1], runs[1][1], strict=True)]
            for name, at in places.named().items()
        }
        # The pair is bound now: the next one comes after this trace is told.
        restored = _restored(
            hosted,
            sites,
            places.named(),
            changes,
            lambda rows, pair=pair: margins(pair.corrupted, rows, pair),
        )
        yield Trace(clean=runs[0][0], corrupted=runs[1][0], restored=restored)


def trace_encoder(hosted: HostedModel, tower: TextTower, pairs: Sequence[Pair]) -> Iterator[Trace]:
    """Trace pairs of prompts of a text encoder; their answers are texts to be near to.

    Beside the stream at both places, `subject_mlp` restores what one layer's MLP alone adds at the
    subject: which layer brings the fact.
    """
    meanings = Meanings(hosted, tower)
    sites = [block(tower.tower, layer) for layer in range(tower.n_blocks)]
    adding = [f"{tower.fc2_site(layer)}:out" for layer in range(tower.n_blocks)]
    for pair in pairs:
        near, far = meanings.of([pair.correct, pair.incorrect])
        tokens = tower.tokens([pair.clean, pair.corrupted])
        with torch.no_grad(), hosted.captured(*sites, *adding) as seen:
            tower.module(input_ids=tokens.ids.to(hosted.device))
        here, there = tokens.ids.tolist()
        places = _places(here, there, int(tokens.eos[0]))
        changes = {
            name: [_between(seen[site][0], at) for site in sites]
            for name, at in places.named().items()
        }
        changes["subject_mlp"] = [_between(seen[site][0], places.subject) for site in adding]

        def metric(rows: int, text: str = pair.corrupted, to: Tensor = near, off: Tensor = far):  # noqa: ANN202
            found = embed_clean(hosted, tower, [text] * rows)
            return (cosine_similarity(found, to) - cosine_similarity(found, off)).cpu()

        at = {**places.named(), "subject_mlp": places.subject}
        yield Trace(
            clean=float(metric(1, pair.clean)[0]),
            corrupted=float(metric(1)[0]),
            restored=_restored(hosted, sites, at, changes, metric),
        )


def prepare_texts(
    tower: TextTower, pairs: Sequence[Pair]
) -> tuple[tuple[Pair, ...], tuple[Dropped, ...]]:
    """The pairs that a text encoder can be traced with, and the others with their reasons."""
    kept: list[Pair] = []
    dropped: list[Dropped] = []
    for row, pair in enumerate(pairs):
        counts = tower.count(pair.clean), tower.count(pair.corrupted)
        if counts[0] != counts[1]:
            reason = f"the prompts have {counts[0]} and {counts[1]} tokens"
        elif max(counts) > tower.max_length:
            reason = f"the prompts have {max(counts)} tokens, and {tower.max_length} fit the model"
        elif pair.clean == pair.corrupted:
            reason = "both prompts are the same"
        else:
            kept.append(pair)
            continue
        dropped.append(Dropped(row=row, reason=reason))
    return tuple(kept), tuple(dropped)


def _places(clean: Sequence[int], corrupted: Sequence[int], last: int) -> Places:
    differing = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    return Places(subject=differing[-1] if differing else last, last=last)


def _between(seen: Float[Tensor, "2 tokens d"], at: int) -> Float[Tensor, " d"]:
    return (seen[0, at] - seen[1, at]).float()


def _restored(
    hosted: HostedModel,
    sites: Sequence[str],
    places: Mapping[str, int],
    changes: Mapping[str, Sequence[Tensor]],
    metric: Callable[[int], Tensor],
) -> dict[str, Tensor]:
    """Per place the metric with each layer restored: one row of a forward each."""
    patches = [
        Patch((Shift(site=site, vector=change, positions=(places[name],)),))
        for name in changes
        for site, change in zip(sites, changes[name], strict=True)
    ]
    found: list[Tensor] = []
    for start in range(0, len(patches), ROWS):
        some = patches[start : start + ROWS]
        with hosted.planned(some):
            found.append(metric(len(some)))
    each = torch.cat(found).double().split(len(sites))
    return dict(zip(changes, each, strict=True))
