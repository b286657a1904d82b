"""Write a fact into CLIP's text encoder (ReFACT: Arad, Orgad, Belinkov, NAACL 2024).

Covered: one subject and one target (text or pictures) per edit, several phrasings of the subject,
both CLIP encoders of SDXL (one fit each). Two modes: `corrected` (default: the paper's method done
right) and `reference` (the released code's arithmetic). Not covered: T5 encoders; an edit for them
is refused. The fit never changes the model: it reads a clean pass and runs the later blocks alone.
"""

import hashlib
import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, MaxLen
from jaxtyping import Float
from torch import Tensor

from editors.delta import Delta, Factors
from editors.errors import (
    AlreadyTrue,
    BadImage,
    BadOrder,
    NoProjection,
    NoPull,
    NotFinite,
    SubjectCut,
    SubjectMerges,
    UnreadableLayer,
)
from editors.fact import Fact, Phrasing, last_subject_token
from editors.moment import Corpus, Moment, MomentStore
from editors.objective import Similarity, belief, decay, pull, similarities
from editors.pictures import embed_pictures, vision_of
from editors.progress import Progress
from editors.rank_one import joint, solve_keys
from editors.suffix import Clean, Suffix, clean_pass, embed_clean
from editors.templates import Phrasebook, phrasebook_of
from models.errors import MethodNotApplicable, SubjectNotFound
from models.hosted import HostedModel
from models.method import Method
from models.text_tower import TextTower

_BLOCKS = {12: 7, 23: 14, 32: 20}
_SAME = 0.25
"""Prompt and target say the same if they lie nearer together than this share of the prompt's
median distance to neutral captions. In mode `corrected` the prompt itself is a negative, so that no
probability of the target could tell. On the miniature's 44 facts: at most 0.19 for what is so
already, at least 0.43 for what is new."""


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
    """Neutral captions among the negatives (mode corrected)."""
    space: Literal["projected", "eos_state"] = "projected"
    prompt_order: Annotated[tuple[Annotated[int, Ge(0), Le(9)], ...], MaxLen(10)] = ()
    """Mode reference: which prompts come first, 0 for the edit prompt; the first gives v0."""
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
        book = book or phrasebook_of(hosted)
        factors: dict[str, Factors] = {}
        fits: dict[str, Any] = {}
        for one in self._fits(hosted, fact, book):
            moment = yield from moments.load_or_collect(one.tower, one.block, corpus, hosted)
            found, notes = yield from one.run(moment)
            factors[one.tower.fc2_site(one.block)] = found
            fits[one.tower.attribute] = {**notes, "moment": _about(moment)}
        return Delta(_header(self, hosted, fact, book, fits, sorted(factors)), factors)

    def check(self, hosted: HostedModel, fact: Fact) -> None:
        """Refuse, without a pass through the model, what no fit could write.

        Raises:
            MethodNotApplicable, UnreadableLayer, NoProjection, SubjectNotFound, SubjectCut,
                SubjectMerges, BadImage, BadOrder: As `fit`.
        """
        self._fits(hosted, fact, phrasebook_of(hosted))

    def _fits(self, hosted: HostedModel, fact: Fact, book: Phrasebook) -> list["_Fit"]:
        reason = hosted.family.applies.get(self.kind, "the family does not name it")
        if reason is not None:
            raise MethodNotApplicable(self.kind, hosted.family.kind, reason)
        return [_Fit(self, hosted, t, fact, book) for t in hosted.text_towers.values()]


class _Fit:
    """One tower's share of an edit."""

    def __init__(
        self, settings: Refact, hosted: HostedModel, tower: TextTower, fact: Fact, book: Phrasebook
    ) -> None:
        self.settings, self.hosted, self.fact = settings, hosted, fact
        self.tower = in_space(tower, settings.space)
        self.block = default_block(tower) if settings.block is None else settings.block
        if self.block not in tower.reachable:
            raise UnreadableLayer(
                self.block, f"{tower.reachable.start}..{tower.reachable.stop - 1}"
            )
        if settings.space == "projected" and tower.projection is None:
            raise NoProjection(hosted.name)
        self.pictured = bool(fact.target_images) or settings.objective in {"contrastive", "direct"}
        if self.pictured:
            self._check_pictures()
        self.book = book.of(settings.mode)
        said = (fact.spoken, *fact.phrasings)
        self.groups = [contexts(self.tower, p, self.book) for p in said]
        self.first = first_prompt(settings, len(self.groups[0]))

    def _check_pictures(self) -> None:
        if not self.fact.target_images:
            raise BadImage("An image objective needs `target_images`.")
        if self.settings.space != "projected":
            raise BadImage("Pictures are embedded behind the projection; `space` leaves it out.")
        vision_of(self.hosted, self.tower)

    def run(self, moment: Moment) -> Generator[Progress, None, tuple[Factors, dict[str, Any]]]:
        if self.settings.mode == "corrected" and not (self.pictured or self.fact.source):
            self._check_news()
        flat = [p for group in self.groups for p in group]
        at = [last_subject_token(self.tower, p) for p in flat]
        clean = clean_pass(self.hosted, self.tower, self.block, [p.prompt for p in flat], at)
        owner = torch.tensor([g for g, group in enumerate(self.groups) for _ in group])
        first = [int((owner == g).nonzero()[0]) for g in range(len(self.groups))]
        start = clean.output[self.first]
        # Phrasing j is to end at the same value: what is added there is v* - o_j. The prompt's own
        # contexts get the change itself, whichever of them gave the start value.
        apart = start - clean.output[first]
        apart[0] = 0
        suffix = Suffix(self.tower, self.block, clean)
        change, notes = yield from self._descend(suffix, apart[owner], start, self._targets())
        factors = self._write(clean, owner, first, start, change, moment)
        share = float(change.norm() / start.norm())
        return factors, {**notes, "block": self.block, "share": share, "norm": float(change.norm())}

    def _check_news(self) -> None:
        """AlreadyTrue where the prompt says what the target says."""
        said = [self.fact.prompt, self.fact.target]
        neutral = self.book.captions(said, 20)
        own, *others = embed_clean(self.hosted, self.tower, [*said, *neutral])
        away = [float(torch.linalg.vector_norm(own - other)) for other in others]
        if neutral and away[0] < _SAME * statistics.median(away[1:]):
            surely = 1 - away[0] / statistics.median(away[1:])
            raise AlreadyTrue(self.fact.prompt, self.fact.target, surely)

    def _targets(self) -> Float[Tensor, "sets t e"]:
        """Sets of a target and what to move away from: one for a text, one for each picture."""
        if self.pictured:
            return self._image_targets()
        texts = list(dict.fromkeys(self._texts()))
        return embed_clean(self.hosted, self.tower, texts)[None]

    def _texts(self) -> list[str]:
        s, fact = self.settings, self.fact
        source = [fact.source] if fact.source else []
        if s.mode == "reference":
            return [fact.target, *(source or [fact.prompt])]
        said = [fact.prompt, fact.target, *source, *(p.prompt for p in fact.phrasings)]
        own = [fact.prompt, *source]
        return [fact.target, *own, *self.book.captions(said, s.negatives)]

    def _image_targets(self) -> Float[Tensor, "sets 2 e"]:
        images = embed_pictures(self.hosted, self.tower, self.fact.target_images)
        away = embed_clean(self.hosted, self.tower, [self.fact.prompt]).expand_as(images)
        return torch.stack([images, away], dim=1)

    def _descend(
        self,
        suffix: Suffix,
        offset: Float[Tensor, "p d"],
        start: Float[Tensor, " d"],
        targets: Float[Tensor, "sets t e"],
    ) -> Generator[Progress, None, tuple[Float[Tensor, " d"], dict[str, Any]]]:
        """Adam on one change for all prompts; see refact.md section 3.4."""
        s, contrastive = self.settings, self.settings.objective.startswith("contrastive")
        change = torch.zeros_like(start, requires_grad=True)
        optimiser = torch.optim.Adam([change], lr=s.rate)
        radius, curve, said, clamped = s.clamp * float(start.norm()), [], 0.0, False
        for step in range(s.steps):
            embedded, scale = suffix.embed(change + offset), self.tower.logit_scale or 1.0
            scores = [similarities(embedded, t, s.similarity, scale) for t in targets]
            loss = _pulled(scores, contrastive) + s.decay * decay(change, start)
            said = sum(map(belief, scores)) / len(scores) if len(targets[0]) > 1 else 0.0
            curve.append(float(loss.detach()))
            if not math.isfinite(curve[-1]):
                raise NotFinite("The loss")
            yield Progress(
                stage="fit",
                done=step + 1,
                total=s.steps,
                values={"loss": curve[-1], "belief": said},
            )
            if step == 0 and said > s.stop:
                raise AlreadyTrue(self.fact.prompt, self.fact.target, said)
            if (contrastive and said > s.stop) or step == s.steps - 1:
                break
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                if (norm := float(change.norm())) > radius:
                    change *= radius / norm
                    clamped = True
        found = change.detach()
        if float(found.norm()) < 0.05 * float(start.norm()) and said <= s.stop:
            raise NoPull(float(found.norm() / start.norm()))
        return found, {"loss": curve, "belief": said, "evaluations": len(curve), "clamped": clamped}

    def _write(
        self,
        clean: Clean,
        owner: Tensor,
        first: list[int],
        start: Float[Tensor, " d"],
        change: Float[Tensor, " d"],
        moment: Moment,
    ) -> Factors:
        """Keys, values and the closed form, in float64."""
        s = self.settings
        wanted = [start + change - clean.output[f] for f in first]
        keys: list[Tensor] = []
        asked: list[Tensor] = []
        values: list[Tensor] = []
        for g, _ in enumerate(self.groups):
            own = clean.key[owner == g].double().cpu()
            for key, direction in _keys_of(own, s):
                keys.append(key)
                asked.append(direction)
                values.append(wanted[g].double().cpu())
        k, v = torch.stack(keys), torch.stack(values)
        a = solve_keys(torch.stack(asked), moment.factor)
        left, right = joint(k, a, v)
        return Factors(*(t.float().contiguous() for t in (left, right, k, a, v)))


def _keys_of(
    own: Float[Tensor, "contexts inner"], s: Refact
) -> list[tuple[Float[Tensor, " inner"], Float[Tensor, " inner"]]]:
    """(where it is exact, what C^-1 is applied to) for one phrasing; row 0 is the bare prompt."""
    if s.mode == "reference":
        return [(own[0], own[1:].mean(0) if len(own) > 1 else own[0])]
    if s.keys == "prompt":
        return [(own[0], own[0])]
    if s.keys == "mean":
        return [(own.mean(0), own.mean(0))]
    distinct: list[Tensor] = []
    for key in own:
        if all(float((key - d).norm() / d.norm()) > 1e-4 for d in distinct):
            distinct.append(key)
    return [(key, key) for key in distinct]


def contexts(tower: TextTower, phrasing: Phrasing, book: Phrasebook) -> list[Phrasing]:
    """The prompt itself, then the fitted templates that take it whole, once and unmerged."""
    found = [phrasing]
    last_subject_token(tower, phrasing)
    for template in book.fitted:
        filled = Phrasing(prompt=template.format(phrasing.prompt), subject=phrasing.subject)
        try:
            last_subject_token(tower, filled)
        except (SubjectMerges, SubjectNotFound):
            continue  # the template's own words get in the way of the subject
        except SubjectCut:
            raise SubjectCut(
                filled.prompt, tower.count(filled.prompt) - 2, tower.max_length - 2
            ) from None
        if filled.prompt not in {p.prompt for p in found}:
            found.append(filled)
    return found


def default_block(tower: TextTower) -> int:
    """The paper's for the depth, else three fifths up."""
    depth = len(tower.blocks)
    return _BLOCKS.get(depth, min(round(0.6 * depth), tower.reachable.stop - 1))


def in_space(tower: TextTower, space: str) -> TextTower:
    """The tower as its embeddings are compared: `eos_state` leaves the projection out."""
    return replace(tower, projection=None) if space == "eos_state" else tower


def first_prompt(s: Refact, prompts: int) -> int:
    """Which prompt gives the start value; in the reference's code whichever hashing put first.

    Raises:
        BadOrder: The order does not fit the prompts, or the mode has none.
    """
    order = tuple(s.prompt_order)
    if not order:
        return 0
    if s.mode != "reference":
        raise BadOrder(f"In mode {s.mode} the edit prompt always gives the start value.")
    if len(set(order)) < len(order) or max(order) >= prompts:
        raise BadOrder(f"The order {list(order)} does not fit the {prompts} prompts of this fit.")
    return order[0]


def _pulled(scores: Sequence[Float[Tensor, "p t"]], contrastive: bool) -> Float[Tensor, ""]:
    """Summed over the sets where each has its own softmax, else their mean."""
    pulls = torch.stack([pull(s, contrastive) for s in scores])
    return pulls.sum() if contrastive else pulls.mean()


def _about(moment: Moment) -> dict[str, Any]:
    return {
        "recipe": moment.recipe,
        "digest": moment.digest,
        "tokens": moment.count,
        "per_dimension": moment.per_dimension,
        "ridge": moment.factor.ridge,
    }


def _header(
    s: Refact,
    hosted: HostedModel,
    fact: Fact,
    book: Phrasebook,
    fits: dict[str, Any],
    sites: list[str],
) -> dict[str, Any]:
    said = asdict(fact)
    images = said.pop("target_images")
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
        "fact": {**said, "target_images": [hashlib.sha256(i).hexdigest() for i in images]},
        "fit": fits,
        "templates": book.origin(s.mode),
        "sentences": book.digests(s.mode),
    }


METHOD = Refact
EXAMPLE = Refact()
