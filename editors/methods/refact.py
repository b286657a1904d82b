"""Write a fact into CLIP's text encoder (ReFACT: Arad, Orgad, Belinkov, NAACL 2024).

Covered: one subject and one target (text or pictures) per edit, several phrasings of the subject,
both CLIP encoders of SDXL (one fit each). Two modes: `corrected` (default: the paper's method done
right) and `reference` (the released code's arithmetic). Not covered: T5 encoders; an edit for them
is refused. The fit never changes the model: it reads a clean pass and runs the later blocks alone.
"""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MaxLen

from editors.delta import Delta, Factors
from editors.fact import Fact
from editors.fitting import Fit, Notes, together
from editors.moment import Corpus, MomentStore
from editors.objective import Similarity
from editors.progress import Progress
from editors.templates import Phrasebook, phrasebook_of
from models.errors import MethodNotApplicable, Refusal
from models.hosted import HostedModel
from models.method import Method


@dataclass(frozen=True, kw_only=True)
class Refact(Method):
    """The settings of a fit; the defaults are the reference's where it has one."""

    mode: Literal["corrected", "reference"] = "corrected"
    block: Annotated[int, Ge(0)] | None = None
    """The edited block, from 0; default: by the tower's depth (12: 7)."""
    objective: Literal["contrastive_text", "direct_text", "contrastive", "direct"] = (
        "contrastive_text"
    )
    similarity: Similarity = "l2"
    keys: Literal["mean", "prompt", "each"] = "mean"
    """Where the value is written: at the mean key, the bare prompt's, or every distinct one."""
    steps: Annotated[int, Ge(1), Le(1000)] = 100
    """Evaluations of the loss; the last one is not followed by an update."""
    rate: Annotated[float, Gt(0), Le(5)] = 0.05
    decay: Annotated[float, Ge(0), Le(100)] = 0.1
    stop: Annotated[float, Gt(0), Le(1)] = 0.99
    """Stop when the mean probability of the target exceeds this."""
    clamp: Annotated[float, Gt(0), Le(100)] = 4.0
    """Largest ||delta|| in units of ||v0||."""
    negatives: Annotated[int, Ge(0), Le(40)] = 20
    """Neutral captions among the negatives (mode corrected, or with `kl`)."""
    space: Literal["projected", "eos_state"] = "projected"
    prompt_order: Annotated[tuple[Annotated[int, Ge(0), Le(9)], ...], MaxLen(10)] = ()
    """Mode reference: which prompts come first, 0 for the edit prompt; the first gives v0."""
    kl: Annotated[float, Ge(0), Le(100)] = 0.0
    """Mode reference: weight of the KL regulariser, which holds what CLIP makes of the neutral
    captions among the fact's `negative_images`. 0, as released, is off; so it is in every family.
    """
    kind: Literal["refact"] = "refact"

    def fit(
        self,
        hosted: HostedModel,
        fact: Fact,
        moments: MomentStore,
        corpus: Corpus,
        book: Phrasebook | None = None,
    ) -> Generator[Progress, None, Delta]:
        """Fit the fact; yields progress, returns the delta, leaves the model as it was.

        Raises:
            MethodNotApplicable, UnreadableLayer, NoProjection: The model cannot take this edit.
            SubjectNotFound, SubjectCut, SubjectMerges, BadImage, BadOrder: The request is to blame.
            AlreadyTrue, NoPull, NotFinite, BadMoment: The fit found that there is no edit.
        """
        (found,) = yield from self.fit_many(hosted, [fact], moments, corpus, book)
        if isinstance(found, Refusal):
            raise found
        return found

    def fit_many(
        self,
        hosted: HostedModel,
        facts: Sequence[Fact],
        moments: MomentStore,
        corpus: Corpus,
        book: Phrasebook | None = None,
    ) -> Generator[Progress, None, list[Delta | Refusal]]:
        """Fit several facts in one batch, each as it would be alone; per fact a delta or refusal.

        All their sentences run in one pass per step: it is for the caller to bound their number.
        One that is refused or fails does not end the others.

        Raises:
            BadMoment: No second moment, so that none of them can be solved.
        """
        book = book or phrasebook_of(hosted)
        edits = [_Edit(self, hosted, fact, book) for fact in facts]
        for tower in hosted.text_towers.values():
            live = [e for e in edits if e.refused is None]
            if not live:
                break
            block = live[0].fits[tower.attribute].block
            moment = yield from moments.load_or_collect(tower, block, corpus, hosted)
            found = yield from together([e.fits[tower.attribute] for e in live], moment)
            for edit, one in zip(live, found, strict=True):
                edit.take(tower.fc2_site(block), tower.attribute, one)
        return [edit.result() for edit in edits]

    def check(self, hosted: HostedModel, fact: Fact) -> None:
        """Refuse, without a pass through the model, what no fit could write.

        Raises:
            MethodNotApplicable, UnreadableLayer, NoProjection, SubjectNotFound, SubjectCut,
                SubjectMerges, BadImage, BadOrder: As `fit`.
        """
        self.fits(hosted, fact, phrasebook_of(hosted))

    def fits(self, hosted: HostedModel, fact: Fact, book: Phrasebook) -> dict[str, Fit]:
        """The fact's share of every encoder; raises as `check`."""
        reason = hosted.family.applies.get(self.kind, "the family does not name it")
        if reason is not None:
            raise MethodNotApplicable(self.kind, hosted.family.kind, reason)
        return {a: Fit(self, hosted, t, fact, book) for a, t in hosted.text_towers.items()}


class _Edit:
    """One fact among those that are fitted together: what came of it so far."""

    def __init__(self, settings: Refact, hosted: HostedModel, fact: Fact, book: Phrasebook) -> None:
        self.settings, self.hosted, self.fact, self.book = settings, hosted, fact, book
        self.refused: Refusal | None = None
        self.fits: dict[str, Fit] = {}
        self.factors: dict[str, Factors] = {}
        self.notes: dict[str, Any] = {}
        try:
            self.fits = settings.fits(hosted, fact, book)
        except Refusal as refusal:
            self.refused = refusal

    def take(self, site: str, attribute: str, found: tuple[Factors, Notes] | Refusal) -> None:
        """Keep what one encoder's fit gave."""
        if isinstance(found, Refusal):
            self.refused = found
        else:
            self.factors[site], self.notes[attribute] = found

    def result(self) -> Delta | Refusal:
        """The delta of all encoders, or why there is none."""
        if self.refused is not None:
            return self.refused
        sites = sorted(self.factors)
        header = _header(self.settings, self.hosted, self.fact, self.book, self.notes, sites)
        return Delta(header, self.factors)


def _header(
    s: Refact,
    hosted: HostedModel,
    fact: Fact,
    book: Phrasebook,
    fits: dict[str, Any],
    sites: list[str],
) -> dict[str, Any]:
    said = asdict(fact)
    images = {name: said.pop(name) for name in ("target_images", "negative_images")}
    digests = {n: [hashlib.sha256(i).hexdigest() for i in some] for n, some in images.items()}
    return {
        "method": s.kind,
        "mode": s.mode,
        "settings": asdict(s),
        "base": {
            "family": hosted.family.kind,
            "fingerprint": hosted.fingerprint,
            "sites": sites,
            "tokenizers": {a: t.tokenizer_digest for a, t in hosted.text_towers.items()},
        },
        "fact": {**said, **digests},
        "fit": fits,
        "templates": book.origin(s.mode),
        "sentences": book.digests(s.mode),
    }


METHOD = Refact
EXAMPLE = Refact()
