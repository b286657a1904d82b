"""What floor 0 refuses, and what the caller can do instead.

An error knows its problem and its remedy; it does not know HTTP.
"""

import re
from typing import ClassVar


class Refusal(Exception):
    """Something that was asked for and will not be done.

    Attributes:
        problem: What is wrong, in one sentence.
        remedy: What the caller can do instead.
        param: The name of the request's field that is to blame, if one is.
        code: The class's name in snake case: what programs compare.
    """

    code: ClassVar[str] = "refusal"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __init__(self, problem: str, *, remedy: str, param: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.param = problem, remedy, param

    def __reduce__(self) -> tuple[object, ...]:
        return _revive, (type(self), self.problem, dict(self.__dict__))


def _revive(kind: type[Refusal], problem: str, state: dict[str, object]) -> Refusal:
    """Rebuild a refusal in another process without its constructor's arguments."""
    revived = kind.__new__(kind)
    Exception.__init__(revived, problem)
    revived.__dict__.update(state)
    return revived


class UnknownSite(Refusal):
    """A patch names a place that the model does not have."""

    def __init__(self, site: str, model: str) -> None:
        super().__init__(
            f"{model} has no site {site!r}.",
            remedy="Ask GET /v1/models/{id} for the model's sites; blocks count from 0.",
            param="site",
        )


class BadSite(Refusal):
    """A text that the grammar of sites does not know."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} does not name a site.",
            remedy="Write text.embedding, text.block.7 or the path of a linear layer.",
            param="site",
        )


class BadPatch(Refusal):
    """Data that cannot be a patch: wrong shapes, not finite, contradictory."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Fit or import the change again for this model.")


class WrongBase(Refusal):
    """A delta was made for other weights than the hosted ones."""

    def __init__(self, edit: str, made_for: str, model: str, has: str) -> None:
        super().__init__(
            f"{edit} was made for weights {made_for[:16]}, but {model} has {has[:16]}.",
            remedy=f"Fit or make it again on {model}.",
            param="edits",
        )


class PatchNotApplied(Refusal):
    """A planned change did not reach its rows: they fail, their neighbours do not."""

    def __init__(self, rows: frozenset[int], site: str, planned: int, changed: int) -> None:
        super().__init__(
            f"The change at {site} was planned for {planned or 'no'} tokens and reached {changed}.",
            remedy="This is a fault of the service, not of the request: please report it.",
        )
        self.rows, self.site, self.planned, self.changed = rows, site, planned, changed


class ModelNotFound(Refusal):
    """A folder that does not exist, or a hub id that cannot be fetched."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"There is no model at {where}.",
            remedy="Give a folder written by save_pretrained, or a hub id that can be reached.",
            param="path",
        )


class UnknownSetting(Refusal):
    """A dtype or family that loading does not know."""

    def __init__(self, what: str, value: str, known: str) -> None:
        super().__init__(
            f"There is no {what} {value!r}.", remedy=f"Use one of: {known}.", param=what
        )


class UnsafeDtype(Refusal):
    """A precision in which the model would draw spoiled pictures without a word."""

    def __init__(self, dtype: str, why: str, instead: str) -> None:
        super().__init__(
            f"The model is not hosted in {dtype}: {why}.",
            remedy=f"Use {instead} or float32.",
            param="dtype",
        )


class NotSafetensors(Refusal):
    """A folder or file brings weights in a format that can run code."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} has no weights as safetensors.",
            remedy="Save them with save_pretrained(..., safe_serialization=True).",
            param="path",
        )


class UnsupportedFamily(Refusal):
    """No family knows this kind of model."""

    def __init__(self, what: str, known: str, why: str | None = None) -> None:
        super().__init__(
            f"No family hosts {what}." if why is None else f"No family hosts {what}: {why}.",
            remedy=f"Host one of: {known}; or add a family.",
            param="path",
        )


class MethodNotApplicable(Refusal):
    """A method that this family cannot use, with the reason."""

    def __init__(
        self,
        method: str,
        family: str,
        reason: str,
        *,
        remedy: str = "Choose a model whose `methods` name it.",
        param: str = "method",
    ) -> None:
        super().__init__(
            f"{method} does not apply to {family}: {reason}", remedy=remedy, param=param
        )


class BadLayer(Refusal):
    """A layer of a text encoder that does not exist, or that the pipeline does not read."""

    def __init__(self, layer: int, ordinary: int, tower: str) -> None:
        super().__init__(
            f"The lens cannot look at layer {layer} of {tower}.",
            remedy=f"Use 0 (what enters block 0) to {ordinary} (the ordinary picture).",
            param="layers",
        )


class UnknownTower(Refusal):
    """A text encoder that the model does not have."""

    def __init__(self, name: str, known: str) -> None:
        super().__init__(
            f"The model has no text encoder {name!r}.",
            remedy=f"Use one of: {known}.",
            param="encoder",
        )


class PromptTooLong(Refusal):
    """A prompt that the text encoder would cut."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"The prompt has {tokens} tokens; the text encoder reads {limit}.",
            remedy="Shorten the prompt: nothing is cut silently.",
            param="prompt",
        )


class NegativeUnread(Refusal):
    """A negative prompt for a model that reads none."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"{model} reads no negative prompt: {why}.",
            remedy="Leave it out, and say in the prompt what the picture shall show.",
            param="negative_prompt",
        )


class NoChatTemplate(Refusal):
    """Messages for a model whose tokenizer does not say how a conversation is written."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} has no chat template.",
            remedy="Send one text to /v1/completions, or host a model that was made for chats.",
            param="messages",
        )


class BadConversation(Refusal):
    """Messages that the model's chat template does not know how to write."""

    def __init__(self, model: str, why: str) -> None:
        super().__init__(
            f"The chat template of {model} refuses the messages: {why.rstrip('.')}.",
            remedy="Use the roles and the order that the model was trained with.",
            param="messages",
        )


class PicturesMiscounted(Refusal):
    """A conversation with more or fewer places for pictures than pictures."""

    def __init__(self, places: int, pictures: int) -> None:
        super().__init__(
            f"The messages have places for {places} pictures, and there are {pictures}.",
            remedy="Send one image part for each picture, in order.",
            param="messages",
        )


class BadPart(Refusal):
    """A part of a message that is not read: a video, or a text that plays a picture."""

    def __init__(
        self,
        why: str,
        param: str = "messages",
        remedy: str = "Send texts, and pictures as image parts.",
    ) -> None:
        super().__init__(f"A part of the messages is not read: {why}.", remedy=remedy, param=param)


class SubjectNotFound(Refusal):
    """The subject does not occur in the prompt, or more than once."""

    def __init__(self, subject: str, prompt: str, times: int) -> None:
        super().__init__(
            f"The subject {subject!r} occurs {times} times in {prompt!r}.",
            remedy="Name a subject that occurs exactly once in the prompt.",
            param="subject",
        )


class UnknownSampler(Refusal):
    """A sampler that is not offered."""

    def __init__(self, name: str, known: str) -> None:
        super().__init__(
            f"There is no sampler {name!r}.", remedy=f"Use one of: {known}.", param="sampler"
        )


class BadSize(Refusal):
    """A picture size that the model cannot draw."""

    def __init__(self, height: int, width: int, multiple: int, limit: int | None = None) -> None:
        bound = "" if limit is None else f" up to {limit}"
        super().__init__(
            f"The model cannot draw {width}x{height} pixels.",
            remedy=f"Use multiples of {multiple}{bound}.",
            param="size",
        )
