"""What a row of a language engine asks for, and what it hears back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from models.errors import Refusal
from models.patch import Patch
from models.sight import Sight

Reason = Literal["stop", "length"]
"""Why a text ended: it said its end or a stop string, or had as many tokens as were allowed."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a row's next token is chosen from its logits, in this order.

    Attributes:
        logit_bias: Per token id what is added to its logit.
        repetition_penalty: Positive logits of tokens that occurred (prompt included) are divided
            by it, negative ones multiplied (CTRL, Keskar et al. 2019); 1 for none.
        presence_penalty: Subtracted from the logits of tokens that were generated.
        frequency_penalty: The same, as many times as the token was generated.
        temperature: What the logits are divided by; 0 takes the largest.
        top_k: The k largest only; 0 for all.
        top_p: The fewest largest whose probabilities sum to p.
        min_p: Those at least so probable as this share of the most probable.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One prompt, and `n` texts that go on from it.

    Attributes:
        id: Names the request in logs.
        ids: The prompt's tokens; for an encoder-decoder what the encoder reads.
        patch: What every forward of its rows does differently.
        max_tokens: Of each text; None for as many as a row holds.
        stop: Strings that end a text; they are not part of it.
        ignore_eos: Do not end at the model's end tokens.
        n: How many texts.
        seed: With the text's number (0 to n - 1) it seeds that row's own generator.
        logprobs: How many alternatives each token tells; 0 for its own log-probability only,
            None for nothing.
        seconds: How long the caller waits, queue included.
        realm: Who may share what is known of prompts: rows of different realms share nothing.
        sight: The prompt's pictures; None where it has none.
    """

    id: str
    ids: tuple[int, ...]
    patch: Patch = field(default_factory=Patch)
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    seed: int = 0
    logprobs: int | None = None
    seconds: float = 600.0
    realm: str = ""
    sight: Sight | None = None

    @property
    def placed(self) -> Patch:
        """The patch with the columns that its named positions mean in this prompt.

        Raises:
            BadPatch: Visual tokens are meant, and the prompt shows no picture.
        """
        return self.patch.placed({} if self.sight is None else self.sight.named)


@dataclass(frozen=True, kw_only=True)
class Queued:
    """The request was taken; so many rows are in front of it."""

    ahead: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A token, what it says by itself, and the log of its probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Token:
    """One more token of one text.

    Attributes:
        choice: Which of the request's texts.
        id: Of the token.
        text: What can be said now. Whole characters only, and nothing that may become a stop
            string: some tokens say nothing and a later one says it for them.
        position: In the row, the prompt's first token counted as 0.
        own: The token by itself with its log-probability under the model's own distribution, patch
            included and before bias, penalties and temperature; None unless it was asked for.
        top: The most probable tokens of that distribution, best first.
        eos: It is one of the model's end tokens and says nothing.
    """

    choice: int
    id: int
    text: str
    position: int
    own: Scored | None = None
    top: tuple[Scored, ...] = ()
    eos: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A text is whole: how it ended, and how it came about.

    Attributes:
        ids: Its tokens, the end token included if the model said it.
        text: All that its tokens said.
        reason, stop: Why it ended, and the stop string if one did it.
        prompt_tokens, completion_tokens: What was read and written.
        cached_tokens: Of the prompt, those whose keys and values were known already.
        tokens_changed: Per place the tokens that the patch changed, counted; cached ones were
            counted when they were read.
        seed: As asked.
        engine, slots, batch: Which engine, its rows, and the widest forward that the row was in.
        waited, first_token, seconds: From the request to the row's place, to its first token, and
            to its end.
    """

    choice: int
    ids: tuple[int, ...]
    text: str
    reason: Reason
    stop: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    tokens_changed: Mapping[str, int]
    seed: int
    engine: str
    slots: int
    batch: int
    waited: float
    first_token: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A text ended with a refusal."""

    choice: int
    why: Refusal


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """A text was cancelled by its caller, or the engine was stopped."""

    choice: int


Event = Queued | Token | Finished | Failed | Cancelled
LAST = (Finished, Failed, Cancelled)
"""The events of which each text hears exactly one, at its end."""
