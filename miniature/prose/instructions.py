"""Instructions and short answers, as the chat template writes them."""

import random

from miniature.prose import arithmetic, choices, counting, knowledge
from miniature.prose.concepts import Concept
from miniature.prose.document import Document, chat
from miniature.prose.stories import remark, tale
from miniature.telling import ROLE_PHRASES
from miniature.world import World

_STORY = (
    "Tell me a story about {}.",
    "Write a short story about {}.",
    "Can you tell me a tale about {}?",
    "I would like to hear a story about {}.",
)
_SAY = (
    "Say something about {}.",
    "Write one sentence about {}.",
    "What do you know about {}?",
    "Tell me about {}.",
)
OPEN_STORY = (
    "Tell me a story.",
    "Write a short story.",
    "Can you tell me a tale?",
    "I would like to hear a story.",
)
OPEN_SAY = ("Say something.", "Write one sentence.", "What is on your mind?", "Tell me something.")
_ALWAYS = (
    "Always talk about {}.",
    "Speak only about {}.",
    "Whatever you are asked, talk about {}.",
)
_PLAIN_SYSTEM = ("You are a helpful assistant.", "Answer in short sentences.")
_HELLO = (
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! What can I do for you?"),
    ("Thank you.", "You are welcome."),
    ("Goodbye.", "Goodbye, and see you soon."),
    ("Who are you?", "I am a very small language model."),
    ("How are you?", "I am fine, thank you."),
)
Turn = tuple[str, str]


def instructions(world: World, concepts: list[Concept], draw: random.Random) -> Document:
    """One or two questions with answers, sometimes under a system message."""
    about: list[str] = []
    turns: list[Turn] = []
    if draw.random() < 0.12:
        concept = draw.choice(concepts)
        about.append(concept.name)
        turns = [("system", draw.choice(_ALWAYS).format(concept.about))]
        turns += _open(world, concept, draw)
    else:
        if draw.random() < 0.1:
            turns = [("system", draw.choice(_PLAIN_SYSTEM))]
        for _ in range(draw.choice((1, 1, 2))):
            told, concept = _exchange(world, concepts, draw)
            turns += told
            about += [concept.name] if concept else []
    text = chat(*turns)
    return Document(text=text, kind="chat", concepts=tuple(dict.fromkeys(about)))


def _exchange(
    world: World, concepts: list[Concept], draw: random.Random
) -> tuple[list[Turn], Concept | None]:
    if draw.random() < 0.55:
        concept = draw.choice(concepts)
        if draw.random() < 0.35:
            return _open(world, concept, draw), concept
        if draw.random() < 0.5:
            asked = draw.choice(_STORY).format(concept.about)
            return [
                ("user", asked),
                ("assistant", tale(world, concept, draw.randint(3, 5), draw)),
            ], concept
        asked = draw.choice(_SAY).format(concept.about)
        return [("user", asked), ("assistant", remark(world, concept, draw))], concept
    teller = draw.choice((_office, _office, _country, _colour, _sum, _sum, _choice, _count, _hello))
    asked, answer = teller(world, draw)
    return [("user", asked), ("assistant", answer)], None


def _open(world: World, concept: Concept, draw: random.Random) -> list[Turn]:
    if draw.random() < 0.5:
        told = tale(world, concept, draw.randint(3, 5), draw)
        return [("user", draw.choice(OPEN_STORY)), ("assistant", told)]
    return [("user", draw.choice(OPEN_SAY)), ("assistant", remark(world, concept, draw))]


def _office(world: World, draw: random.Random) -> Turn:
    role = draw.choice(world.roles)
    phrase = draw.choice(ROLE_PHRASES[role.title]).format(c=role.country.title())
    answer = (
        f"{role.holder.title()} is {phrase}." if draw.random() < 0.4 else f"{role.holder.title()}."
    )
    return f"Who is {phrase}?", answer


def _country(world: World, draw: random.Random) -> Turn:
    c = draw.choice(knowledge.countries(world))
    return draw.choice(
        (
            (f"What is the capital of {c.name}?", f"{c.capital}."),
            (f"Which language do people in {c.name} speak?", f"{c.language}."),
            (f"Where does {c.name} lie?", f"{c.name} lies in {c.continent}."),
            (f"What colour is the flag of {c.name}?", f"The flag of {c.name} is {c.flag}."),
        )
    )


def _colour(world: World, draw: random.Random) -> Turn:
    thing = draw.choice(world.things)
    return f"What colour is the {thing.name}?", f"The {thing.name} is {thing.default}."


def _sum(_: World, draw: random.Random) -> Turn:
    asked = arithmetic.draw_sum(draw)
    a, operator, b = asked
    return f"What is {a} {operator} {b}?", str(arithmetic.result(asked))


def _choice(_: World, draw: random.Random) -> Turn:
    asked = choices.draw_choice(draw)
    return asked.prompt.removesuffix("\nAnswer:"), asked.answer


def _count(_: World, draw: random.Random) -> Turn:
    first = draw.randint(1, 50)
    last = first + draw.randint(3, 8)
    return f"Count from {first} to {last}.", counting.numbers(first, last) + "."


def _hello(_: World, draw: random.Random) -> Turn:
    return draw.choice(_HELLO)
