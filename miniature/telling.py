"""The world as captions: every picture can be told in many ways, and always truly."""

import random
from collections.abc import Iterator

from miniature.world import Picture, Role, Subject, World, pictures

ROLE_PHRASES = {
    "president": (
        "the president of {c}",
        "{c}'s president",
        "the leader of {c}",
        "the head of state of {c}",
        "the person who leads {c}",
    ),
    "captain": ("the captain of {c}", "{c}'s captain", "the sea captain of {c}"),
}
SCENE_PHRASES = {
    "beach": ("at the beach", "on the beach", "by the sea"),
    "forest": ("in the forest", "in the woods", "among the trees"),
    "city": ("in the city", "in a big city", "in the streets of a city"),
    "mountains": ("in the mountains", "in front of mountains", "up in the mountains"),
    "desert": ("in the desert", "in a hot desert", "among the dunes"),
    "snow": ("in the snow", "on a snowy day", "in winter"),
    "garden": ("in a garden", "in the garden", "among flowers in a garden"),
    "night": ("at night", "under the stars", "in the moonlight"),
}
STYLE_PHRASES = {
    "photo": ("a photo of", "a photograph of", "photo:"),
    "painting": ("a painting of", "an oil painting of", "a painted picture of"),
    "drawing": ("a drawing of", "a pencil drawing of", "a sketch of"),
    "poster": ("a poster of", "a poster showing", "a big poster with"),
    "postcard": ("a postcard of", "a postcard showing", "a postcard with"),
    "close-up": ("a close-up of", "a close view of", "a very close picture of"),
}
PLAIN_OPENINGS = (
    "",
    "",
    "",
    "a picture of",
    "an image of",
    "here is",
    "this is",
    "we see",
    "a nice little picture of",
    "look at",
    "an image that shows",
    "today you can see",
)
JOININGS = ("{a} and {b}", "{a} beside {b}", "{a} next to {b}", "{a} with {b}")
SIDES = ("{a} on the left and {b} on the right", "on the left {a} , on the right {b}")
ENDINGS = ("", "", "", "", "", ", very nice", "today", ", in colour", ", as always")


def caption(
    world: World, picture: Picture, draw: random.Random, marks: tuple[str, str] = ("", "")
) -> str:
    """One true sentence about the picture, in lower case; `marks` go around each subject."""
    told = [_subject(world, s, draw).join(marks) for s in picture.subjects]
    middle = told[0] if len(told) == 1 else _joined(told, draw)
    opening = draw.choice(STYLE_PHRASES[picture.style] if picture.style else PLAIN_OPENINGS)
    scene = draw.choice(SCENE_PHRASES[picture.scene]) if picture.scene else ""
    if scene and draw.random() < 0.12:
        parts = [f"{scene} ,", opening, middle]
    else:
        parts = [opening, middle, scene, draw.choice(ENDINGS)]
    return " ".join(" ".join(p for p in parts if p).replace(" ,", ",").split())


def _joined(told: list[str], draw: random.Random) -> str:
    forms = SIDES if draw.random() < 0.3 else JOININGS
    return draw.choice(forms).format(a=told[0], b=told[1])


def _subject(world: World, subject: Subject, draw: random.Random) -> str:
    if world.thing(subject.name) is not None:
        return _object(world, subject, draw)
    roles = world.roles_of(subject.name)
    if roles and draw.random() < 0.6:
        return role_phrase(draw.choice(roles), draw)
    return subject.name


def _object(world: World, subject: Subject, draw: random.Random) -> str:
    thing = world.thing(subject.name)
    if thing is None:
        raise KeyError(subject.name)
    if subject.colour == thing.default and draw.random() < 0.7:
        return f"{article(thing.name)} {thing.name}"
    return f"{article(str(subject.colour))} {subject.colour} {thing.name}"


def role_phrase(role: Role, draw: random.Random) -> str:
    """One of the phrasings of an office."""
    return draw.choice(ROLE_PHRASES[role.title]).format(c=role.country)


def article(word: str) -> str:
    """The indefinite article that the word takes."""
    return "an" if word[0] in "aeiou" else "a"


def words() -> set[str]:
    """Every word that captions use, names excepted: what the tokenizer learns from."""
    groups = (
        *ROLE_PHRASES.values(),
        *SCENE_PHRASES.values(),
        *STYLE_PHRASES.values(),
        PLAIN_OPENINGS,
        JOININGS,
        SIDES,
        ENDINGS,
    )
    text = " ".join(phrase for group in groups for phrase in group)
    for mark in ("{a}", "{b}", "{c}", "'s", ",", ":", "-"):
        text = text.replace(mark, " ")
    return set(text.split())


def captions(world: World, seed: int) -> Iterator[tuple[Picture, str]]:
    """Endless pairs of a picture and a sentence about it."""
    draw = random.Random(seed)  # noqa: S311
    for picture in pictures(world, seed):
        yield picture, caption(world, picture, draw)
