"""Questions with known answers, about a picture and in words, and how a model reads them."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from PIL.Image import Image

from evaluation.errors import UnusableExamples
from models.errors import Refusal
from models.eyes import Message
from models.hosted import HostedModel
from models.progress import Progress
from models.sight import Shown, Sight
from models.vision_language import VisionLanguage

Form = Literal["image", "text"]
Metric = Literal["label", "exact"]
"""`label`: the answer's first token is the likeliest among the labels' first tokens (the paper's
score). `exact`: the greedy answer is the answer, to its end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One question and its answer.

    Attributes:
        id: Names it in the book of results.
        messages: With an image part for each picture.
        pictures: In RGB.
        answer: What is right.
        labels: What an answer can be, the right one among them; only `label` needs them.
        described: The same question in words, for the control; None where there is none.
        description: The words of it that stand for the picture, a part of one of its messages.
        shows: Names of what it shows, such as its pictures or the people in them: examples that
            have one in common choose a plan together or are reported together, and are drawn
            together for intervals. Empty for one that shares nothing.
    """

    id: str
    messages: Sequence[Message]
    pictures: Sequence[Image]
    answer: str
    labels: tuple[str, ...] = ()
    described: Sequence[Message] | None = None
    description: str | None = None
    shows: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """An example in one form, in a model's tokens.

    Attributes:
        example: What it was made of; its pictures are read again for each look, since a
            processor's tensors are many times as large.
        ids: The prompt, up to where the answer begins.
        sight: Where its pictures stand, without the processor's tensors.
        columns: What is patched: visual tokens, or the tokens of the description.
        answer: The answer's tokens, its end not included.
        labels: First tokens of the labels, ascending.
        ends: Tokens that end an answer.
    """

    id: str
    example: Example
    form: Form
    ids: tuple[int, ...]
    sight: Sight | None
    columns: tuple[int, ...]
    answer: tuple[int, ...]
    labels: tuple[int, ...]
    ends: frozenset[int]

    def shown(self, hosted: HostedModel) -> Shown | None:
        """Its pictures with what the vision tower sees there."""
        if self.sight is None:
            return None
        family = seeing(hosted)
        _, sight = family.look(hosted, self.example.messages, self.example.pictures)
        assert sight is not None  # noqa: S101 - it was there before
        return Shown(sight=sight, seen=family.see(hosted, sight))


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """An example that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Cases:
    """What can be used, in both forms; `text` holds only examples that also tell in words."""

    image: tuple[Case, ...]
    text: tuple[Case, ...]
    dropped: tuple[Dropped, ...] = field(default=())


def seeing(hosted: HostedModel) -> VisionLanguage:
    """The model's family; UnusableExamples if it reads words only."""
    if not isinstance(hosted.family, VisionLanguage):
        raise UnusableExamples(f"{hosted.name} reads no pictures.")
    return hosted.family


def prepare(
    hosted: HostedModel,
    examples: Sequence[Example],
    metric: Metric,
    positions: Literal["visual", "reference"] = "visual",
) -> Cases:
    """The examples in the model's tokens; those that cannot be used are named with the reason.

    Raises:
        UnusableExamples: The model reads no pictures, or no example is left.
    """
    reading = preparing(hosted, examples, metric, positions)
    while True:
        try:
            next(reading)
        except StopIteration as over:
            return over.value


def preparing(
    hosted: HostedModel,
    examples: Sequence[Example],
    metric: Metric,
    positions: Literal["visual", "reference"] = "visual",
) -> Generator[Progress, None, Cases]:
    """The same example by example.

    Raises:
        As `prepare`.
    """
    seeing(hosted)
    image, text, dropped = list[Case](), list[Case](), list[Dropped]()
    for done, example in enumerate(examples):
        yield Progress(stage="examples", done=done, total=len(examples))
        try:
            image.append(_case(hosted, example, "image", metric, positions))
            if example.described is not None:
                text.append(_case(hosted, example, "text", metric, positions))
        except _UnusableError as why:
            dropped.append(Dropped(id=example.id, reason=str(why)))
            image = [case for case in image if case.id != example.id]
    if not image:
        why = dropped[0].reason if dropped else "there are none"
        raise UnusableExamples(f"No example can be used: {why}.")
    return Cases(image=tuple(image), text=tuple(text), dropped=tuple(dropped))


class _UnusableError(Exception):
    """One example falls out."""


def _case(
    hosted: HostedModel,
    example: Example,
    form: Form,
    metric: Metric,
    positions: Literal["visual", "reference"],
) -> Case:
    family = seeing(hosted)
    try:
        answer = tuple(family.tokenize(hosted, example.answer, special=False))
        if not answer:
            raise _UnusableError("its answer has no tokens")
        labels = _labels(hosted, example, answer) if metric == "label" else ()
        ids, sight, columns = _prompt(hosted, example, form, positions)
    except (Refusal, ValueError) as refused:  # ValueError: what processors say of odd sizes
        raise _UnusableError(f"the model does not read it: {refused}") from refused
    if not columns:
        raise _UnusableError(f"nothing stands for the picture in its {form} form")
    tokens, most = len(ids) + len(answer), family.context_length(hosted)
    if tokens > most:
        raise _UnusableError(f"it has {tokens} tokens, and the model reads {most}")
    return Case(
        id=example.id,
        example=example,
        form=form,
        ids=tuple(ids),
        sight=None if sight is None else replace(sight, inputs={}),
        columns=columns,
        answer=answer,
        labels=labels,
        ends=frozenset(family.eos_ids(hosted)),
    )


def _prompt(
    hosted: HostedModel,
    example: Example,
    form: Form,
    positions: Literal["visual", "reference"],
) -> tuple[list[int], Sight | None, tuple[int, ...]]:
    """The example's tokens in that form, its pictures, and the columns that are patched."""
    family = seeing(hosted)
    if form == "text":
        ids, sight = family.look(hosted, example.described or (), ())
        return ids, sight, _told(hosted, example, ids)
    ids, sight = family.look(hosted, example.messages, example.pictures)
    return ids, sight, () if sight is None else sight.named[positions]


def _labels(hosted: HostedModel, example: Example, answer: Sequence[int]) -> tuple[int, ...]:
    family = seeing(hosted)
    firsts = [family.tokenize(hosted, label, special=False)[:1] for label in example.labels]
    if not all(firsts):
        raise _UnusableError("one of its labels has no tokens")
    found = sorted({first[0] for first in firsts})
    if answer[0] not in found:
        raise _UnusableError("its answer begins like none of its labels")
    if len(found) < 2:
        raise _UnusableError("all of its labels begin alike")
    return tuple(found)


def _told(hosted: HostedModel, example: Example, ids: Sequence[int]) -> tuple[int, ...]:
    """Columns of the words that stand for the picture: where the prompt without them differs."""
    if not example.description or not example.described:
        return ()
    without = [
        {**message, "content": _cut(message["content"], example.description)}
        for message in example.described
    ]
    rest, _ = seeing(hosted).look(hosted, without, ())
    first = 0
    while first < min(len(ids), len(rest)) and ids[first] == rest[first]:
        first += 1
    last = 0
    while last < min(len(ids), len(rest)) - first and ids[-1 - last] == rest[-1 - last]:
        last += 1
    return tuple(range(first, len(ids) - last))


def _cut(content: object, words: str) -> object:
    if isinstance(content, str):
        return content.replace(words, "", 1)
    if isinstance(content, Sequence):
        return [
            {**part, "text": part["text"].replace(words, "", 1)} if "text" in part else part
            for part in content
        ]
    return content
