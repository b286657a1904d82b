"""One text tower's share of a ReFACT edit: its rows, its targets, its keys; several run together.

Sections 3 and 6.3 of the method's specification. What the settings mean stands in the method's own
file; here is what they lead to in one encoder.
"""

import statistics
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.delta import Factors
from editors.descent import Aim, Descended, Descent, descend
from editors.errors import (
    AlreadyTrue,
    BadImage,
    BadOrder,
    BadRegulariser,
    EditsConflict,
    NoProjection,
    SubjectCut,
    SubjectMerges,
    UnreadableLayer,
)
from editors.fact import Fact, Phrasing, last_subject_token
from editors.moment import Moment
from editors.pictures import embed_pictures, vision_of
from editors.progress import Progress
from editors.rank_one import joint, solve_keys
from editors.suffix import Meanings, Suffix, clean_pass
from editors.templates import Phrasebook
from models.errors import Refusal, SubjectNotFound
from models.hosted import HostedModel
from models.text_tower import TextTower

if TYPE_CHECKING:
    from editors.methods.refact import Refact

Notes = dict[str, Any]
"""What a delta's header tells of one tower's fit."""
_BLOCKS = {12: 7, 23: 14, 32: 20}
_SAME = 0.25
"""Prompt and target say the same if they lie nearer together than this share of the prompt's
median distance to neutral captions. In mode `corrected` the prompt itself is a negative, so that no
probability of the target could tell. On the miniature's 44 facts: at most 0.19 for what is so
already, at least 0.43 for what is new."""


class Fit:
    """One tower's share of an edit.

    Attributes:
        groups: Per phrasing, the edit prompt's first, its contexts.
        captions: Those of the KL regulariser.
        texts: All of them: the rows of a pass.
        at: Where each row is changed: the subject's last token, a caption's last.
    """

    def __init__(
        self,
        settings: "Refact",
        hosted: HostedModel,
        tower: TextTower,
        fact: Fact,
        book: Phrasebook,
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
        self.captions = self._captions() if settings.kl else ()
        if settings.kl or fact.negative_images:
            self._check_kl()
        said = (fact.spoken, *fact.phrasings)
        self.groups = [contexts(self.tower, p, self.book) for p in said]
        self.first = first_prompt(settings, len(self.groups[0]))
        self.owner = torch.tensor([g for g, group in enumerate(self.groups) for _ in group])
        flat = [p for group in self.groups for p in group]
        self.texts = [*(p.prompt for p in flat), *self.captions]
        ends = [tower.count(text) - 2 for text in self.captions]
        self.at = [*(last_subject_token(tower, p) for p in flat), *ends]

    def _check_pictures(self) -> None:
        if not self.fact.target_images:
            raise BadImage("An image objective needs `target_images`.")
        if self.settings.space != "projected":
            raise BadImage("Pictures are embedded behind the projection; `space` leaves it out.")
        vision_of(self.hosted, self.tower)

    def _check_kl(self) -> None:
        if not self.settings.kl:
            raise BadRegulariser("Without `kl` nothing looks at `negative_images`.")
        if self.settings.mode != "reference":
            raise BadRegulariser(f"Mode {self.settings.mode} has no KL regulariser.")
        if not self.captions or not self.fact.negative_images:
            raise BadRegulariser("The KL regulariser needs neutral captions and negative images.")
        if self.settings.space != "projected":
            raise BadRegulariser("Pictures are embedded behind the projection, not in `eos_state`.")
        vision_of(self.hosted, self.tower)

    def read(self) -> list[str]:
        """The texts whose unedited meaning the fit asks for."""
        return [*self._news(), *self._texts()]

    def look(self, meanings: Meanings) -> tuple[Float[Tensor, "sets t e"], Tensor | None]:
        """Sets of a target and what to move away from, and the negative images.

        There is one set for a text, one for each picture.

        Raises:
            AlreadyTrue: The prompt says what the target says.
            BadImage, BadPreprocessor: Pictures that nothing can look at.
        """
        self._check_news(meanings)
        pictures = self._embedded(self.fact.negative_images) if self.captions else None
        if not self.pictured:
            return meanings.of(self._texts())[None], pictures
        images = self._embedded(self.fact.target_images)
        away = meanings.of(self._texts()).expand_as(images)
        return torch.stack([images, away], dim=1), pictures

    def aim(
        self,
        output: Float[Tensor, "rows d"],
        targets: Float[Tensor, "sets t e"],
        pictures: Float[Tensor, "m e"] | None,
    ) -> Aim:
        """What the change is to do, given the layer's clean outputs."""
        start = output[self.first]
        # Phrasing j is to end at the same value: what is added there is v* - o_j. The prompt's own
        # contexts get the change itself, whichever of them gave the start value.
        apart = start - output[self._firsts]
        apart[0] = 0
        plain = output.new_zeros(len(self.captions), len(start))
        return Aim(
            fact=self.fact,
            start=start,
            offset=torch.cat([apart[self.owner], plain]),
            targets=targets,
            pictures=pictures,
            captions=len(self.captions),
        )

    @property
    def _firsts(self) -> list[int]:
        """Each phrasing's own row."""
        return [int((self.owner == g).nonzero()[0]) for g in range(len(self.groups))]

    def _news(self) -> list[str]:
        """The prompt, the target and what to compare their distance with, where that is asked."""
        if self.settings.mode != "corrected" or self.pictured or self.fact.source:
            return []
        said = [self.fact.prompt, self.fact.target]
        neutral = self.book.captions(said, 20)
        return [*said, *neutral] if neutral else []

    def _check_news(self, meanings: Meanings) -> None:
        if not (news := self._news()):
            return
        own, *others = meanings.of(news)
        away = [float(torch.linalg.vector_norm(own - other)) for other in others]
        if away[0] < _SAME * statistics.median(away[1:]):
            surely = 1 - away[0] / statistics.median(away[1:])
            raise AlreadyTrue(self.fact.prompt, self.fact.target, surely)

    def _texts(self) -> list[str]:
        """The target, then what to move away from; a picture moves away from the prompt alone."""
        s, fact = self.settings, self.fact
        if self.pictured:
            return [fact.prompt]
        source = [fact.source] if fact.source else []
        if s.mode == "reference":
            return list(dict.fromkeys([fact.target, *(source or [fact.prompt]), *self.captions]))
        return list(dict.fromkeys([fact.target, fact.prompt, *source, *self._captions()]))

    def _captions(self) -> tuple[str, ...]:
        fact = self.fact
        source = [fact.source] if fact.source else []
        said = [fact.prompt, fact.target, *source, *(p.prompt for p in fact.phrasings)]
        return self.book.captions(said, self.settings.negatives)

    def _embedded(self, pictures: Sequence[bytes]) -> Float[Tensor, "n e"]:
        return embed_pictures(self.hosted, self.tower, pictures)

    def write(
        self,
        key: Float[Tensor, "rows inner"],
        output: Float[Tensor, "rows d"],
        change: Float[Tensor, " d"],
        moment: Moment,
    ) -> Factors:
        """Keys, values and the closed form, in float64."""
        wanted = [output[self.first] + change - output[f] for f in self._firsts]
        keys: list[Tensor] = []
        asked: list[Tensor] = []
        values: list[Tensor] = []
        for g, _ in enumerate(self.groups):
            own = key[: len(self.owner)][self.owner == g].double().cpu()
            for where, direction in _keys_of(own, self.settings):
                keys.append(where)
                asked.append(direction)
                values.append(wanted[g].double().cpu())
        k, v = torch.stack(keys), torch.stack(values)
        a = solve_keys(torch.stack(asked), moment.factor)
        left, right = joint(k, a, v)
        return Factors(*(t.float().contiguous() for t in (left, right, k, a, v)))


def together(
    fits: Sequence[Fit], moment: Moment
) -> Generator[Progress, None, list[tuple[Factors, Notes] | Refusal]]:
    """One tower's share of several edits: their clean passes, their descents, their solutions."""
    hosted, tower, block, settings = (
        fits[0].hosted, fits[0].tower, fits[0].block, fits[0].settings
    )  # fmt: skip
    meanings = Meanings(hosted, tower)
    meanings.of([text for fit in fits for text in fit.read()])
    ends: dict[int, tuple[Factors, Notes] | Refusal] = {}
    looks: dict[int, tuple[Tensor, Tensor | None]] = {}
    for n, fit in enumerate(fits):
        try:
            looks[n] = fit.look(meanings)
        except Refusal as refusal:
            ends[n] = refusal
    if looks:
        texts = [text for n in looks for text in fits[n].texts]
        clean = clean_pass(hosted, tower, block, texts, [p for n in looks for p in fits[n].at])
        sizes = [len(fits[n].texts) for n in looks]
        keys, outputs = clean.key.split(sizes), clean.output.split(sizes)
        aims = [fits[n].aim(o, *looks[n]) for n, o in zip(looks, outputs, strict=True)]
        suffix = Suffix(tower, block, clean)
        found = yield from descend(suffix, aims, _descent(settings, tower))
        for n, key, output, end in zip(looks, keys, outputs, found, strict=True):
            ends[n] = _written(fits[n], key, output, end, moment)
    return [ends[n] for n in range(len(fits))]


def _written(
    fit: Fit, key: Tensor, output: Tensor, end: Descended | Refusal, moment: Moment
) -> tuple[Factors, Notes] | Refusal:
    if isinstance(end, Refusal):
        return end
    try:
        factors = fit.write(key, output, end.change, moment)
    except EditsConflict as refusal:
        return refusal
    norm, before = float(end.change.norm()), float(output[fit.first].norm())
    told = {"block": fit.block, "share": norm / before, "norm": norm, "moment": _about(moment)}
    return factors, {**end.notes, **told}


def _descent(s: "Refact", tower: TextTower) -> Descent:
    return Descent(
        steps=s.steps,
        rate=s.rate,
        decay=s.decay,
        stop=s.stop,
        clamp=s.clamp,
        kl=s.kl,
        contrastive=s.objective.startswith("contrastive"),
        similarity=s.similarity,
        scale=tower.logit_scale or 1.0,
    )


def _keys_of(
    own: Float[Tensor, "contexts inner"], s: "Refact"
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


def first_prompt(s: "Refact", prompts: int) -> int:
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


def _about(moment: Moment) -> dict[str, Any]:
    return {
        "recipe": moment.recipe,
        "digest": moment.digest,
        "tokens": moment.count,
        "per_dimension": moment.per_dimension,
        "ridge": moment.factor.ridge,
        "cond": moment.cond,
    }
