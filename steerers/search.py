"""From a concept in words to features: by lens tokens, by labels, filtered by output score.

A word stands for its surface forms: case, a space before it, plural and simple inflections. A form
counts if the tokenizer has it as one token; where it has none, the first piece of the word counts
if that is at least three letters. Coverage is always told: how many candidates, how many kept.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.hosted import HostedModel
from steerers.lens import TOKENS, LensIndex, language_of
from steerers.score import Score

CANDIDATES = 50
"""Features that are scored for one concept, the best lens places first."""
_LENS_IN, _FEWEST = 32_000, 3
"""Vocabulary from which all lens places speak for a feature, and how many do in the smallest."""
_EMPTY_WORDS = frozenset(("a", "an", "and", "at", "by", "for", "in", "of", "on", "or", "the", "to"))
_PIECE_LETTERS = 3
Scores = Callable[[Sequence[int]], Mapping[int, Score]]
"""Output scores of features: stored ones, or measured now."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A feature that may mean the concept.

    Attributes:
        token: The lens token by which it was found; None by its label.
        place: Of the token in its lens, 0 the most promoted.
        label: The label by which it was found, or None.
    """

    feature: int
    token: int | None = None
    place: int | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search gave, best first.

    Attributes:
        tokens: Ids that stand for the concept.
        by_piece: Whether the tokenizer knows no form as one token.
        total: Features that were found at all; at most `CANDIDATES` of them were scored.
        kept: Candidates whose output score reaches the minimum, the highest score first.
        dropped: The others.
    """

    concept: str
    tokens: tuple[int, ...]
    by_piece: bool
    total: int
    minimum: float
    kept: tuple[tuple[Candidate, Score], ...]
    dropped: tuple[tuple[Candidate, Score], ...]

    @property
    def coverage(self) -> float:
        """Share of the scored candidates that was kept; 0 without candidates."""
        scored = len(self.kept) + len(self.dropped)
        return len(self.kept) / scored if scored else 0.0

    @property
    def best(self) -> float | None:
        """The highest output score among all candidates."""
        told = [
            s.output_score for _, s in (*self.kept, *self.dropped) if s.output_score is not None
        ]
        return max(told, default=None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "concept": self.concept,
            "tokens": list(self.tokens),
            "by_piece": self.by_piece,
            "total": self.total,
            "candidates": len(self.kept) + len(self.dropped),
            "coverage": self.coverage,
            "min_output_score": self.minimum,
            "kept": [_told(c, s) for c, s in self.kept],
            "dropped": [_told(c, s) for c, s in self.dropped],
        }


def _told(candidate: Candidate, score: Score) -> dict[str, Any]:
    found_by = {"token": candidate.token, "place": candidate.place, "label": candidate.label}
    return {"feature": candidate.feature, "output_score": score.output_score, **found_by}


def forms(word: str) -> tuple[str, ...]:
    """Plural and simple inflections of an English word, the word itself first."""
    found = [word, f"{word}s", f"{word}es", f"{word}ed", f"{word}ing"]
    if word.endswith("y"):
        found += [f"{word[:-1]}ies", f"{word[:-1]}ied"]
    if word.endswith("e"):
        found += [f"{word}d", f"{word[:-1]}ing"]
    if word.endswith("s") and len(word) > _PIECE_LETTERS:
        found.append(word[:-1])
    if word.endswith("ies"):
        found.append(f"{word[:-3]}y")
    return tuple(dict.fromkeys(found))


def words_of(concept: str) -> tuple[str, ...]:
    """The words of a concept that mean something, in lower case."""
    all_of_it = [w.lower() for w in re.findall(r"\w+", concept)]
    return tuple(dict.fromkeys(w for w in all_of_it if w not in _EMPTY_WORDS) or all_of_it)


def tokens_of(hosted: HostedModel, concept: str) -> tuple[tuple[int, ...], bool]:
    """Ids that stand for the concept; and whether they are only pieces of its words."""
    words = words_of(concept)
    spelled = [
        f"{space}{case}"
        for word in words
        for form in forms(word)
        for case in dict.fromkeys((form, form.capitalize(), form.upper()))
        for space in (" ", "")
    ]
    ids = [_ids(hosted, text) for text in spelled]
    if whole := [found[0] for found in ids if len(found) == 1]:
        return tuple(dict.fromkeys(whole)), False
    family = language_of(hosted)
    first = [_ids(hosted, f" {word}") for word in words]
    pieces = [found[0] for found in first if found]
    long = [i for i in pieces if len(family.detokenize(hosted, [i]).strip()) >= _PIECE_LETTERS]
    return tuple(dict.fromkeys(long)), True


def _ids(hosted: HostedModel, text: str) -> list[int]:
    """Without a piece that is nothing but the space."""
    family = language_of(hosted)
    ids = family.tokenize(hosted, text, special=False)
    while len(ids) > 1 and not family.detokenize(hosted, ids[:1]).strip():
        ids = ids[1:]
    return ids


def candidates(
    tokens: Sequence[int],
    index: LensIndex,
    concept: str = "",
    labels: Mapping[int, str] | None = None,
) -> list[Candidate]:
    """Features whose lens has one of the tokens, or whose label has a word of the concept.

    Labelled ones first, then by their place in the lens.
    """
    found: dict[int, Candidate] = {}
    for token in tokens:
        for feature, place in index.find(token):
            known = found.get(feature)
            if known is None or (known.place is not None and place < known.place):
                found[feature] = Candidate(feature=feature, token=token, place=place)
    wanted = {form for word in words_of(concept) for form in forms(word)}
    for feature, label in (labels or {}).items():
        if wanted & {w.lower() for w in re.findall(r"\w+", label)}:
            at = found.get(feature, Candidate(feature=feature))
            found[feature] = Candidate(feature=feature, token=at.token, place=at.place, label=label)
    far = len(index.places)
    return sorted(
        found.values(),
        key=lambda c: (c.label is None, far if c.place is None else c.place, c.feature),
    )


def lens_places(hosted: HostedModel) -> int:
    """How many lens places of a feature speak for it: 20, and fewer where words are few.

    Twenty tokens of 256,000 say what a feature writes; of 2,048 they are one in a hundred, and
    every feature has some token of every concept among them.
    """
    vocabulary = language_of(hosted).vocab_size(hosted)
    return max(_FEWEST, min(TOKENS, -(-TOKENS * vocabulary // _LENS_IN)))


def rank(candidate: Candidate, score: Score, places: int) -> tuple[bool, bool, float]:
    """Smaller is better: labelled ones, then those whose place speaks for them, then by score."""
    spoken_for = candidate.place is not None and candidate.place < places
    return candidate.label is None, not spoken_for, -(score.output_score or 0.0)


def search(  # noqa: PLR0913 - what is asked for, and where it is looked up
    hosted: HostedModel,
    concept: str,
    index: LensIndex,
    scores: Scores,
    *,
    labels: Mapping[int, str] | None = None,
    minimum: float = 0.0,
    at_most: int = CANDIDATES,
) -> Found:
    """Candidates for a concept, filtered by output score; the best first, as `rank` says.

    Somebody who labels a feature has seen what it does; a lens token is a guess at it.

    Args:
        hosted: The model whose tokenizer spells the concept.
        concept: One word or a few.
        index: The dictionary's lens, turned around.
        scores: Asked once, for all candidates together.
        labels: What people say of features.
        minimum: The output score that a kept feature reaches.
        at_most: Candidates that are scored.
    """
    tokens, by_piece = tokens_of(hosted, concept)
    places = lens_places(hosted)
    every = candidates(tokens, index, concept, labels)
    some = every[:at_most]
    told = scores([c.feature for c in some]) if some else {}
    ranked = sorted(
        ((c, told[c.feature]) for c in some),
        key=lambda pair: rank(*pair, places),
    )
    reaches = [s.output_score is not None and s.output_score >= minimum for _, s in ranked]
    return Found(
        concept=concept,
        tokens=tokens,
        by_piece=by_piece,
        total=len(every),
        minimum=minimum,
        kept=tuple(p for p, kept in zip(ranked, reaches, strict=True) if kept),
        dropped=tuple(p for p, kept in zip(ranked, reaches, strict=True) if not kept),
    )
