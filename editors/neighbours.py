"""What lies near an edit: phrases of the corpus and of the live edits, by the overlap of keys.

Near is what shares the edit's direction as the second moment C measures it: rho = |a_i . k_j| /
sqrt((a_i . k_i) (a_j . k_j)) with a = C^-1 k. A phrase's key is taken at its last token, where an
edit of it would be written. Source: ReFACT's specification, sections 6.2 and 8.
"""

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editors.delta import Factors
from editors.errors import SubjectCut, SubjectMerges
from editors.fact import Fact, Phrasing, last_subject_token
from editors.moment import Corpus, Moment, MomentStore
from editors.progress import Progress
from editors.rank_one import solve_keys
from models.errors import SubjectNotFound
from models.hosted import HostedModel
from models.text_tower import TextTower

MOST = 2000
"""Phrases of a corpus that are kept."""
NEAREST = 20
_LONGEST = 6
_SEED = "tiller"
_BATCH = 128
_KEPT = 8
_WORDS = {
    "places": "in on at by to from with without into onto under over near beside behind between "
    "among before after above below against around through across during up down next today",
    "joints": "and or but not as very while for that which when where",
    "verbs": "is are was were be been has have had can see seen look looks looking show shows",
    "pointers": "this these there here it its we you they he she i what showing shown",
    "pictures": "photo photograph picture painting drawing sketch image postcard poster portrait "
    "close-up view",
}
_BREAKS = frozenset(word for words in _WORDS.values() for word in words.split())
"""A caption is cut at these and at punctuation: no name of a thing in it goes across them.

The last ones say what kind of picture it is, not what is in it.
"""
_ARTICLES = frozenset(("the", "a", "an"))
_DANGLING = _ARTICLES | {"of", "who"}


def spoken(text: str) -> str:
    """The text's words in small letters, one space between them: as CLIP's tokenizer reads it."""
    return " ".join(re.findall(r"[\w'-]+", text.lower()))


def phrases_of(texts: Sequence[str], most: int = MOST) -> tuple[str, ...]:
    """The most frequent short noun phrases of some captions; of equals, drawn by a fixed seed.

    "a photo of the president of Arda at night" gives "the president of arda", "arda" and "night".
    """
    counted: Counter[str] = Counter()
    for text in texts:
        for part in re.split(r"[^\w' -]+", text.lower()):
            counted.update(_phrases(part.split()))
    lots = {p: hashlib.sha256(f"{_SEED}{p}".encode()).digest() for p in counted}
    return tuple(sorted(counted, key=lambda p: (-counted[p], lots[p]))[:most])


def _phrases(words: Sequence[str]) -> Generator[str, None, None]:
    run: list[str] = []
    for word in [*words, "and"]:
        begins = word in _ARTICLES and run[-1:] != ["of"]
        if word in _BREAKS or begins:
            yield from _tails(run)
            run = []
        if word not in _BREAKS:
            run.append(word)


def _tails(run: list[str]) -> Generator[str, None, None]:
    """The run itself and what stands behind each "of" in it."""
    starts = [0, *(i + 1 for i, word in enumerate(run) if word == "of")]
    for start in starts:
        tail = run[start:]
        if 0 < len(tail) <= _LONGEST and tail[0] != "of" and tail[-1] not in _DANGLING:
            yield " ".join(tail)


@dataclass(frozen=True, eq=False)
class PhraseBank:
    """Phrases with their keys in one block.

    Attributes:
        phrases: Each with the subject whose last token is meant.
        keys: (n, inner) in float32.
        scale: (n,) sqrt(k . C^-1 k).
    """

    phrases: tuple[Phrasing, ...]
    keys: Float[Tensor, "n inner"]
    scale: Float[Tensor, " n"]

    def overlap(self, edit: Factors) -> Float[Tensor, " n"]:
        """|rho| of every phrase with the edit's nearest key."""
        solved = edit.solved.double()
        own = (solved * edit.keys.double()).sum(-1).abs().clamp_min(1e-300).sqrt()
        cross = (solved @ self.keys.double().mT).abs()
        return (cross / own[:, None] / self.scale.clamp_min(1e-150)).amax(0)

    def __add__(self, other: "PhraseBank") -> "PhraseBank":
        return PhraseBank(
            self.phrases + other.phrases,
            torch.cat([self.keys, other.keys]),
            torch.cat([self.scale, other.scale]),
        )


class PhraseBanks:
    """Banks of corpora in memory, by tower, block and corpus: a model's fits share them.

    `moments` is the store that the fits use, so that nothing is collected twice.
    """

    def __init__(self, moments: MomentStore) -> None:
        self.moments = moments
        self.kept: OrderedDict[tuple[str, str, str], PhraseBank] = OrderedDict()

    def of(
        self,
        hosted: HostedModel,
        tower: TextTower,
        block: int,
        corpus: Corpus,
        live: Sequence[Phrasing] = (),
    ) -> Generator[Progress, None, PhraseBank]:
        """The corpus' phrases, and behind them the live edits', which are read anew."""
        moment = yield from self.moments.load_or_collect(tower, block, corpus, hosted)
        key = (tower.fingerprint, tower.fc2_site(block), corpus.digest)
        if key not in self.kept:
            phrases = [Phrasing(prompt=p, subject=p) for p in phrases_of(corpus.texts)]
            self.kept[key] = yield from _read(hosted, tower, block, moment, phrases)
            while len(self.kept) > _KEPT:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        bank = self.kept[key]
        if not live:
            return bank
        registered = yield from _read(hosted, tower, block, moment, live)
        return bank + registered


def _read(
    hosted: HostedModel,
    tower: TextTower,
    block: int,
    moment: Moment,
    phrases: Sequence[Phrasing],
) -> Generator[Progress, None, PhraseBank]:
    """The keys of some phrases in one pass, a batch a step; those that do not fit are left out."""
    placed = [(p, at) for p in phrases if (at := place(tower, p)) is not None]
    placed.sort(key=lambda entry: (len(entry[0].prompt), entry[0].prompt))
    keys = [torch.empty(0, tower.inner_width)]
    scale = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(placed), _BATCH):
        batch = placed[start : start + _BATCH]
        found = keys_at(hosted, tower, tower.fc2_site(block), batch)
        solved = solve_keys(found, moment.factor)
        keys.append(found.float())
        scale.append((found * solved).sum(-1).clamp_min(0).sqrt())
        yield Progress(stage="neighbours", done=start + len(batch), total=len(placed))
    return PhraseBank(tuple(p for p, _ in placed), torch.cat(keys), torch.cat(scale))


def keys_at(
    hosted: HostedModel, tower: TextTower, site: str, placed: Sequence[tuple[Phrasing, int]]
) -> Float[Tensor, "n inner"]:
    """The layer's input at one position of each prompt, in float64; changes in force included."""
    tokens = tower.tokens([p.prompt for p, _ in placed])
    with torch.no_grad(), hosted.captured(site) as seen:
        tower.module(input_ids=tokens.ids.to(hosted.device))
    at = torch.tensor([place for _, place in placed])
    return seen[site][0].cpu()[torch.arange(len(at)), at].double()


def place(tower: TextTower, phrase: Phrasing) -> int | None:
    """Where the phrase's key is read; None if its subject is cut, merges or is not there once."""
    try:
        return last_subject_token(tower, phrase)
    except (SubjectCut, SubjectMerges, SubjectNotFound):
        return None


def nearest(
    bank: PhraseBank, edit: Factors, fact: Fact, without: Sequence[str] = (), n: int = NEAREST
) -> dict[str, float]:
    """The n phrases that overlap most with the edit, with |rho|; the nearest first.

    Left out are phrases that say the fact's own subject (or that of one of its `phrasings`): they
    are to change; and the texts in `without`, which are measured anyway.
    """
    if not len(edit.keys) or not bank.phrases:
        return {}
    overlap = bank.overlap(edit)
    found: dict[str, float] = {}
    taken = {spoken(text) for text in without}
    for i in overlap.argsort(descending=True, stable=True).tolist():
        text = bank.phrases[i].prompt
        if spoken(text) not in taken and not says_subject(text, fact):
            found[text] = float(overlap[i])
            taken.add(spoken(text))
        if len(found) == n:
            break
    return found


def says_subject(text: str, fact: Fact) -> bool:
    """Whether the text contains the subject of the fact or of one of its phrasings, as words."""
    whole = f" {spoken(text)} "
    return any(f" {spoken(p.subject)} " in whole for p in (fact.spoken, *fact.phrasings))
