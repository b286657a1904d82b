"""What the engines refuse."""

import logging

from models.errors import Refusal

_log = logging.getLogger(__name__)


class Full(Refusal):
    """The waiting room is full."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"{waiting} requests are waiting already.",
            remedy=f"Try again in {retry_after:.0f} seconds.",
        )
        self.retry_after = retry_after


class Draining(Refusal):
    """The engine is shutting down: rows that run are finished, nothing new is taken."""

    def __init__(self) -> None:
        super().__init__("The service is shutting down.", remedy="Try again in a moment.")
        self.retry_after = 5.0


class BadRow(Refusal):
    """A number of the request that no picture can be drawn with."""

    def __init__(self, param: str, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy=remedy, param=param)


class DeadlineExceeded(Refusal):
    """A row took longer than its caller wanted to wait."""

    def __init__(self, seconds: float, what: str = "picture", fewer: str = "steps") -> None:
        super().__init__(
            f"The {what} was not finished within {seconds:.0f} seconds.",
            remedy=f"Ask for fewer {fewer}, or raise `request_timeout_s`.",
        )


class NotANumber(Refusal):
    """A row's latents are not finite; its neighbours are not touched."""

    def __init__(self, step: int) -> None:
        super().__init__(
            f"The picture became not-a-number at step {step}.",
            remedy="Lower the guidance scale or the strength of the edits.",
        )


class BadGeneration(Refusal):
    """A number of the request that no text can be written with."""

    def __init__(self, param: str, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy=remedy, param=param)


class AllTokensOnly(Refusal):
    """A patch that means some tokens of a text, where nobody says which token is which."""

    def __init__(self, model: str) -> None:
        super().__init__(
            f"{model} is steered at all tokens or not at all.",
            remedy="Use `positions: all`, without `skip_special`.",
            param="steering",
        )


class ContextTooLong(Refusal):
    """A prompt and its answer need more tokens than a row holds."""

    def __init__(self, prompt: int, asked: int, limit: int) -> None:
        super().__init__(
            f"{prompt} tokens of prompt and {asked} of answer are more than {limit}.",
            remedy="Shorten the prompt, or ask for fewer tokens: nothing is cut silently.",
            param="messages",
        )


class LogitsNotANumber(Refusal):
    """What a model said of a row's next token is not finite; its neighbours are not touched."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"The logits became not-a-number at token {position}.",
            remedy="Lower the strength of the steering or the edits.",
        )


class EngineFailed(Refusal):
    """Something in the engine broke that was not the request's fault."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, remedy="Try again; if it stays, report the request id.")


def refusal_of(broken: BaseException) -> Refusal:
    """A refusal as it is; anything else as a fault of the engine, whose words are only logged."""
    if isinstance(broken, Refusal):
        return broken
    _log.error("A fault that is told without its words", exc_info=broken)
    return EngineFailed("Something broke that was not the request's fault.")
