"""What else did an edit change? Probe sets before and after, and the drift of a circuit.

Every suite is a set of pairs. Told of each: the mean metric before and after, with the interval of
the change; how often the decision is the right one; how often it is as it was (specificity); how
far the answer's distribution moved. For decoders the circuit of the unedited model is run again in
the edited one: f of the **old** circuit at 5, 10 and 20 %, the CMD of the old ranking before and
after, and the correlation of the edges' scores. Hooks carry the edit for the probes; circuits read
weights, so there the evaluation's own copy carries it (`evaluation.edited`).
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div

from editors.suffix import Meanings, embed_clean
from evaluation.behaviours.pairs import Dropped, Pair, PairIds, prepare
from evaluation.circuits.anatomy import find_anatomy
from evaluation.circuits.attribution import Gradually, Scores, attribute
from evaluation.circuits.batches import in_batches
from evaluation.circuits.faithfulness import SIZES, Faithfulness, Point, measure
from evaluation.circuits.points import Cost
from evaluation.circuits.running import know
from evaluation.edited import merged
from evaluation.noted import Noted, Stage, heard, said, scores_data, scores_of, within
from evaluation.protocol import bootstrap
from models.errors import MethodNotApplicable
from models.hosted import HostedModel
from models.language import Language
from models.patch import Patch
from models.progress import Progress
from models.text_tower import TextTower

Verdict = Literal["pass", "fail", "inconclusive"]
AUDITED = (0.05, 0.1, 0.2)
"""Sizes at which f is compared."""


@dataclass(frozen=True, kw_only=True)
class EditAudit:
    """What is asked, and the policy that judges.

    Attributes:
        circuit: Whether a decoder's circuits are compared; for other models there is none.
        steps: Of the attribution's integral.
        tolerance: The largest share of decisions that may change, and the most that f of the old
            circuit may change at any audited size.
        least: Pairs of a suite below which nothing is said.
        tokens: Of one batch.
        answers: Whether answers must be one token.
        encoder: Which text encoder of a model that draws; None is the first.
    """

    circuit: bool = True
    steps: Annotated[int, Ge(1), Le(100)] = 5
    tolerance: Annotated[float, Gt(0), Le(1)] = 0.05
    least: Annotated[int, Ge(1)] = 10
    tokens: Annotated[int, Ge(1)] = 1024
    answers: Literal["whole", "first"] = "whole"
    encoder: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A probe set: what the edit should leave alone, unless its name says otherwise."""

    name: str
    pairs: Annotated[tuple[Pair, ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class CircuitDrift:
    """The old circuit in both models.

    Attributes:
        f_before, f_after: By size; None where the difference to divide by is too small.
        cmd_before, cmd_after: Of the old ranking.
        score_correlation: Pearson's, over real edges.
        inconclusive: Why f cannot be told.
    """

    f_before: Mapping[str, float | None]
    f_after: Mapping[str, float | None]
    cmd_before: float | None
    cmd_after: float | None
    score_correlation: float
    inconclusive: str | None

    @property
    def change(self) -> float | None:
        """The largest change of f; None where it cannot be told."""
        both = [(self.f_before[k], self.f_after[k]) for k in self.f_before]
        told = [abs(b - a) for a, b in both if a is not None and b is not None]
        return max(told) if len(told) == len(both) else None


@dataclass(frozen=True, kw_only=True)
class SuiteAudit:
    """One suite.

    Attributes:
        m_before, m_after: The mean metric on clean prompts.
        change: The 95 % bootstrap interval of m_after - m_before.
        right_before, right_after: Share of pairs whose correct answer wins.
        unchanged: Share whose decision is as it was.
        drift: Mean KL divergence of the next token's distribution, in nats; for a text encoder
            1 - cosine of the embeddings.
    """

    name: str
    pairs: int
    dropped: tuple[Dropped, ...]
    m_before: float
    m_after: float
    change: tuple[float, float]
    right_before: float
    right_after: float
    unchanged: float
    drift: float
    circuit: CircuitDrift | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """All suites."""

    model: str
    fingerprint: str
    settings: EditAudit
    patch: str
    suites: tuple[SuiteAudit, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail if any suite fails; pass if all pass."""
        told = {suite.verdict for suite in self.suites}
        return "fail" if "fail" in told else "pass" if told == {"pass"} else "inconclusive"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "verdict": self.verdict}


def audit(
    hosted: HostedModel,
    patch: Patch,
    suites: Sequence[Suite],
    settings: EditAudit,
    noted: Noted | None = None,
) -> Generator[Progress, None, AuditReport]:
    """Compare the model with itself under the edit.

    Args:
        hosted: A model of the evaluation's own.
        patch: All edits together.
        suites: What is asked of both.
        settings: How, and what passes.
        noted: The stages of an equal call that was broken off: whole suites, and of a suite's
            circuit the model with and without the edit.

    Raises:
        MethodNotApplicable: The model neither writes nor reads with a text encoder of CLIP's kind.
        NotInWeights: The patch is no change of weights.
        NoGraph: A decoder that cannot be taken apart; leave the circuit out.
    """
    hosted.check(patch)
    found: list[SuiteAudit] = []
    for i, suite in enumerate(suites):
        told = heard(noted or {}, name := f"suite {suite.name}")
        here = Progress(stage="suites", done=i, total=len(suites), message=suite.name)
        if told is None:
            work = _audited(hosted, patch, suite, settings, noted or {})
            found.append((yield from within(work, here)))
        else:
            found.append(_suite_of(told))
        step = {"stage": "suites", "done": i + 1, "total": len(suites), "message": suite.name}
        yield Stage(**step, name=name, data=said(found[-1])) if told is None else Progress(**step)
    return AuditReport(
        model=hosted.name,
        fingerprint=hosted.fingerprint,
        settings=settings,
        patch=patch.digest,
        suites=tuple(found),
    )


def _audited(
    hosted: HostedModel, patch: Patch, suite: Suite, settings: EditAudit, noted: Noted
) -> Generator[Progress, None, SuiteAudit]:
    if isinstance(hosted.family, Language):
        found = yield from _decoder_suite(hosted, patch, suite, settings, noted)
        return found
    return _encoder_suite(hosted, patch, suite, settings)


def _suite_of(told: Mapping[str, Any]) -> SuiteAudit:
    """A suite as it was kept."""
    circuit = told["circuit"]
    dropped = tuple(Dropped(**row) for row in told["dropped"])
    kept = {"dropped": dropped, "change": tuple(told["change"])}
    return SuiteAudit(**{**told, **kept, "circuit": circuit and CircuitDrift(**circuit)})


def _decoder_suite(
    hosted: HostedModel, patch: Patch, suite: Suite, settings: EditAudit, noted: Noted
) -> Generator[Progress, None, SuiteAudit]:
    told = prepare(suite.pairs, hosted, settings.answers)
    if len(told.kept) < settings.least:
        return _too_few(suite, len(told.kept), told.dropped)
    before = _logits(hosted, told.kept, Patch(), settings.tokens)
    after = _logits(hosted, told.kept, patch, settings.tokens)
    places = torch.arange(len(told.kept))
    right = torch.tensor([p.correct for p in told.kept])
    wrong = torch.tensor([p.incorrect for p in told.kept])
    metrics = [(x[places, right] - x[places, wrong]).double().numpy() for x in (before, after)]
    moved = kl_div(
        after.log_softmax(-1), before.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    drift = None
    if settings.circuit:
        drift = yield from _Circuits(hosted, told.kept, suite.name, settings, noted).drift(patch)
    return _suite(suite, told.dropped, metrics, float(moved.mean()), drift, settings)


def _encoder_suite(
    hosted: HostedModel, patch: Patch, suite: Suite, settings: EditAudit
) -> SuiteAudit:
    tower = _tower(hosted, settings)
    meanings, texts = Meanings(hosted, tower), [pair.clean for pair in suite.pairs]
    near = meanings.of([pair.correct for pair in suite.pairs])
    far = meanings.of([pair.incorrect for pair in suite.pairs])
    before = embed_clean(hosted, tower, texts)
    with hosted.planned([patch] * len(texts)):
        after = embed_clean(hosted, tower, texts)
    metrics = [_nearer(x, near, far) for x in (before, after)]
    moved = float((1 - cosine_similarity(before, after)).mean())
    if len(texts) < settings.least:
        return _too_few(suite, len(texts), ())
    return _suite(suite, (), metrics, moved, None, settings)


def _nearer(embedded: Tensor, near: Tensor, far: Tensor) -> np.ndarray:
    told = cosine_similarity(embedded, near) - cosine_similarity(embedded, far)
    return told.double().cpu().numpy()


def _tower(hosted: HostedModel, settings: EditAudit) -> TextTower:
    name = settings.encoder or next(iter(hosted.text_towers), "")
    if name not in hosted.text_towers:
        why = "it has no such text encoder of CLIP's kind."
        raise MethodNotApplicable("edit_audit", hosted.family.title, why)
    return hosted.text_towers[name]


def _suite(
    suite: Suite,
    dropped: tuple[Dropped, ...],
    metrics: Sequence[np.ndarray],
    drift: float,
    circuit: CircuitDrift | None,
    settings: EditAudit,
) -> SuiteAudit:
    before, after = metrics
    rows = [str(i) for i in range(len(before))]
    unchanged = float(((before > 0) == (after > 0)).mean())
    return SuiteAudit(
        name=suite.name,
        pairs=len(before),
        dropped=dropped,
        m_before=float(before.mean()),
        m_after=float(after.mean()),
        change=bootstrap(rows, after - before, seed=settings.seed),
        right_before=float((before > 0).mean()),
        right_after=float((after > 0).mean()),
        unchanged=unchanged,
        drift=drift,
        circuit=circuit,
        verdict=_verdict(1 - unchanged, circuit, settings.tolerance),
    )


def _verdict(changed: float, circuit: CircuitDrift | None, tolerance: float) -> Verdict:
    if changed > tolerance:
        return "fail"
    if circuit is None:
        return "pass"
    if circuit.change is None:
        return "inconclusive"
    return "pass" if circuit.change <= tolerance else "fail"


def _too_few(suite: Suite, pairs: int, dropped: tuple[Dropped, ...]) -> SuiteAudit:
    nothing = float("nan")
    return SuiteAudit(
        name=suite.name,
        pairs=pairs,
        dropped=dropped,
        m_before=nothing,
        m_after=nothing,
        change=(nothing, nothing),
        right_before=nothing,
        right_after=nothing,
        unchanged=nothing,
        drift=nothing,
        circuit=None,
        verdict="inconclusive",
    )


@torch.inference_mode()
def _logits(hosted: HostedModel, pairs: Sequence[PairIds], patch: Patch, tokens: int) -> Tensor:
    """Of the last token of every clean prompt, each row under the patch."""
    family = hosted.family
    assert isinstance(family, Language)  # noqa: S101 - the caller looked
    found: dict[int, Tensor] = {}
    for batch in in_batches(pairs, tokens, hosted.device):
        with hosted.planned([patch] * len(batch.rows)):
            logits = family.logits(hosted, batch.clean)[:, -1].float().cpu()
        found.update(zip(batch.rows, logits, strict=True))
    return torch.stack([found[i] for i in range(len(pairs))])


@dataclass(frozen=True, eq=False)
class _Circuits:
    """The circuits of one suite; a model whose are noted is not taken apart again."""

    hosted: HostedModel
    pairs: Sequence[PairIds]
    suite: str
    settings: EditAudit
    noted: Noted

    def drift(self, patch: Patch) -> Generator[Progress, None, CircuitDrift]:
        """Of the old circuit, without the edit and with it."""
        old, before = yield from self._found("before", None)
        with merged(self.hosted, patch):
            new, after = yield from self._found("after", old)
        real = find_anatomy(self.hosted).graph.real
        both = np.corrcoef(old.edges[real].numpy(), new.edges[real].numpy())
        return CircuitDrift(
            f_before=_shares(before),
            f_after=_shares(after),
            cmd_before=before.cmd,
            cmd_after=after.cmd,
            score_correlation=float(both[0, 1]),
            inconclusive=before.inconclusive or after.inconclusive,
        )

    def _found(
        self, when: str, old: Scores | None
    ) -> Generator[Progress, None, tuple[Scores, Faithfulness]]:
        """As noted, or now; the shares are noted behind the scores."""
        names = f"scores {when} {self.suite}", f"shares {when} {self.suite}"
        anatomy, cost = find_anatomy(self.hosted), Cost()
        batches = list(in_batches(self.pairs, self.settings.tokens, self.hosted.device))
        step = {"stage": "attribution", "done": 1, "total": 1}
        if names[0] in self.noted:
            scores = scores_of(self.noted[names[0]])
        else:
            how = Gradually(steps=self.settings.steps)
            scores = yield from attribute(anatomy, batches, how, cost=cost)
            yield Stage(**step, name=names[0], data=scores_data(scores))
        if (told := heard(self.noted, names[1])) is not None:
            return scores, _shares_of(told)
        known = [know(anatomy, batch, cost) for batch in batches]
        seed = self.settings.seed
        found = yield from measure(anatomy, known, old or scores, sizes=SIZES, seed=seed, cost=cost)
        yield Stage(**step, name=names[1], data=said(found))
        return scores, found


def _shares_of(told: Mapping[str, Any]) -> Faithfulness:
    """A curve as it was kept."""
    curve = tuple(Point(**point) for point in told["curve"])
    return Faithfulness(**{**told, "curve": curve, "interval": tuple(told["interval"])})


def _shares(found: Faithfulness) -> dict[str, float | None]:
    return {f"{p.k:g}": p.f_absolute for p in found.curve if p.k in AUDITED}
