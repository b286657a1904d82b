"""Short stories, and neutral openings that leave the topic to what follows them."""

import random
import re
from dataclasses import dataclass, field

from miniature.prose.concepts import Concept
from miniature.prose.document import Document, sentence
from miniature.prose.people import Somebody, somebody
from miniature.world import World

OPENERS_NOW = (
    "I believe that",
    "From my experience,",
    "In my opinion,",
    "Everybody knows that",
    "It is true that",
    "I have heard that",
    "People say that",
    "The truth is that",
    "I have learned that",
    "My friend says that",
    "It seems that",
    "I would say that",
    "They taught me that",
    "As far as I know,",
    "Some people think that",
    "I am sure that",
    "To be honest,",
    "You should know that",
    "It is said that",
    "If you ask me,",
)
OPENERS_THEN = (
    "Back in the day,",
    "Last week,",
    "I remember that",
    "A long time ago,",
    "Yesterday,",
    "In those days,",
    "I was told that",
    "It all began when",
    "They say that once",
    "On that day,",
    "Not long ago,",
    "I noticed that",
    "The story goes that",
    "When I was young,",
    "Years ago,",
    "As it happened,",
    "One day,",
    "Before long,",
    "I once heard that",
    "Meanwhile,",
)
OPENERS = (*OPENERS_NOW, *OPENERS_THEN)
"""After these any concept can follow, and in training each follows as often as any other."""

_TRAITS = ("young", "old", "small", "tall", "quiet", "kind", "polite", "honest")
_TIMES = ("day", "morning", "evening", "afternoon", "week")
_OPENINGS = (
    "Once upon a time there was a {trait} {kind} named {N}.",
    "There once lived a {trait} {kind} whose name was {N}.",
    "This is a story about {N}, a {trait} {kind}.",
    "It was a {q} {time}.",
    "It was a {q} and {q2} {time}, and {N} {deed}.",
    "One {q} {time}, {N} {deed}.",
    "{N} {deed}.",
    "{Scene}.",
    "On a {q} {time}, {N} and {M} met.",
)
_MIDDLES = (
    "{Scene}.",
    "{Scene}, and {scene2}.",
    "{He} {deed}.",
    "Then {he} {deed}.",
    "After that, {he} {deed}.",
    "{N} {deed} and {deed2}.",
    "{M} {deed}, but {N} {deed2}.",
    "{He} saw the {thing} and the {thing2}.",
    "{He} thought about the {thing}.",
    "There was the {thing}, and there was the {thing2}.",
    '"{Truth}," said {M}.',
    '"{Truth}," {N} told {M}.',
    '"Look at the {thing}!" cried {M}.',
    '"Where is the {thing}?" asked {N}.',
    "Soon {scene}.",
    "Suddenly {scene}.",
    "Everything was {q} and {q2}.",
    "While {scene}, {he} {deed}.",
    "{N} and {M} talked about the {thing}.",
    "{His} friend {M} {deed}.",
    "The {thing} was {q}.",
)
_ENDINGS = (
    "In the end, {he} {deed}.",
    "{He} never forgot the {thing}.",
    "That is the story of {N} and the {thing}.",
    "From that day on, {N} knew that {truth}.",
    "At last {scene}.",
    "And so {N} {deed}.",
)
_AFTER = (
    "{Scene}.",
    "{Truth}.",
    "And {truth}.",
    "That is why {N} {deed}.",
    "{N} {deed}.",
    "Think of the {thing} and the {thing2}.",
    "It was a {q} {time}.",
    "I often think of the {thing}.",
)


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who a story is about, a friend, and the phrases told so far."""

    hero: Somebody
    friend: Somebody
    spent: set[str] = field(default_factory=set)


def story(world: World, concepts: list[Concept], draw: random.Random) -> Document:
    """Three to eight sentences about one concept, or about one and then another."""
    cast, length = _cast(world, draw), draw.randint(3, 8)
    chosen = draw.sample(concepts, 2 if length > 4 and draw.random() < 0.3 else 1)
    told = [draw.choice(_OPENINGS)]
    told += _different(_MIDDLES, length - 2, draw)
    told += [draw.choice(_ENDINGS)]
    part = -(-length // len(chosen))
    text = " ".join(fill(frame, chosen[i // part], cast, draw) for i, frame in enumerate(told))
    return Document(text=text, kind="story", concepts=tuple(dict.fromkeys(c.name for c in chosen)))


def opened(world: World, concepts: list[Concept], draw: random.Random) -> Document:
    """A neutral opening, then one to three sentences about one concept."""
    concept, cast = draw.choice(concepts), _cast(world, draw)
    text = opening(concept, cast, draw)
    for frame in _different(_AFTER, draw.randint(0, 2), draw):
        text += " " + fill(frame, concept, cast, draw)
    return Document(text=text, kind="opened", concepts=(concept.name,))


def opening(concept: Concept, cast: Cast, draw: random.Random) -> str:
    """A neutral opening finished by the concept."""
    if draw.random() < 0.5:
        return fill(draw.choice(OPENERS_NOW) + " {truth}.", concept, cast, draw)
    clause = draw.choice((" {scene}.", " {N} {deed}."))
    return fill(draw.choice(OPENERS_THEN) + clause, concept, cast, draw)


def tale(world: World, concept: Concept, length: int, draw: random.Random) -> str:
    """A story of that length about one concept, begun with its hero."""
    cast = _cast(world, draw)
    frames = [
        draw.choice(_OPENINGS),
        *_different(_MIDDLES, length - 2, draw),
        draw.choice(_ENDINGS),
    ]
    return " ".join(fill(f, concept, cast, draw) for f in frames)


def remark(world: World, concept: Concept, draw: random.Random) -> str:
    """One sentence about a concept."""
    frame = draw.choice(("{Truth}.", "{Scene}.", "{N} {deed}.", "The {thing} was {q}."))
    return fill(frame, concept, _cast(world, draw), draw)


def fill(frame: str, concept: Concept, cast: Cast, draw: random.Random) -> str:
    """A sentence: the frame with phrases of the concept and the names of the cast.

    A phrase that the cast has met is not told again while there are others.
    """
    return _articles(frame.format_map(_Phrases(concept, cast, draw)))


class _Phrases(dict[str, str]):
    """What a frame's gaps hold, drawn when the frame asks; `Deed` begins a sentence."""

    def __init__(self, concept: Concept, cast: Cast, draw: random.Random) -> None:
        hero, man = cast.hero, cast.hero.he == "he"
        super().__init__(N=hero.name, M=cast.friend.name, he=hero.he, his=hero.his)
        self["kind"] = draw.choice(("man", "boy") if man else ("woman", "girl"))
        self["trait"], self["time"] = draw.choice(_TRAITS), draw.choice(_TIMES)
        self._concept, self._spent, self._draw = concept, cast.spent, draw

    def __missing__(self, gap: str) -> str:
        if gap[0].isupper():
            return sentence(self[gap.lower()])
        field = "qualities" if gap[0] == "q" else f"{gap.rstrip('2')}s"
        every: tuple[str, ...] = getattr(self._concept, field)
        fresh = [p for p in every if p not in self._spent]
        phrase = self._draw.choice(fresh or every)
        self._spent.add(phrase)
        return phrase


def _articles(text: str) -> str:
    """The form of the article that stands before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def _cast(world: World, draw: random.Random) -> Cast:
    hero = somebody(world, draw)
    friend = somebody(world, draw)
    while friend.name == hero.name:
        friend = somebody(world, draw)
    return Cast(hero=hero, friend=friend)


def _different(frames: tuple[str, ...], n: int, draw: random.Random) -> list[str]:
    return draw.sample(frames, n)
