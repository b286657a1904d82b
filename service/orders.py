"""What crosses the door between the gateway and a language host: plain data, also over Ray.

Every name is a digest by then. What a picture's order looks like stands in `service.workbench`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class EditOrder:
    """An edit by its content; `label` is for error messages only."""

    digest: str
    strength: float
    label: str


@dataclass(frozen=True, kw_only=True)
class VectorOrder:
    """A direction by its content; `label` is what the answer calls it."""

    digest: str
    label: str


@dataclass(frozen=True, kw_only=True)
class PresetOrder:
    """Where a steering came from.

    Attributes:
        fingerprint: Of the weights that it was made for.
        calibration: What a plan of back-patching was found to gain, if it was calibrated.
    """

    name: str
    version: int
    digest: str
    fingerprint: str
    calibration: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As the answer says it."""
        return {"name": self.name, "version": self.version, "digest": self.digest}


@dataclass(frozen=True, kw_only=True)
class SteeringOrder:
    """One steerer of one row; an entry of a request's `steering` is one or several.

    Attributes:
        method: Its settings, one of `STEERERS`; a `vector` is called as the answer calls it.
        vector: What that name means, if it has one.
        preset: Where it came from, if from one.
        place: The key of the request that said so: refusals name it.
    """

    method: Any
    vector: VectorOrder | None = None
    preset: PresetOrder | None = None
    place: str = "steering"

    @property
    def changes(self) -> int:
        """How many features or vectors it is, which the operator bounds."""
        return max(1, len(getattr(self.method, "features", ())))


@dataclass(frozen=True, kw_only=True)
class PictureOrder:
    """A picture of a conversation: PNG, JPEG or WebP whose header was looked at.

    Attributes:
        place: The key of the request that it stands at: refusals name it.
    """

    data: bytes = field(repr=False)
    place: str = "messages"


@dataclass(frozen=True, kw_only=True)
class SamplingOrder:
    """How tokens are drawn: OpenAI's knobs, and those that open models are used with."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TextOrder:
    """Answers to one conversation, or continuations of some texts.

    Choice j of prompt i has the index `i * n + j`.

    Attributes:
        tenant: Whose labels a concept is searched in.
        messages: A conversation for the model's chat template; None for `prompts`. What is said
            is a text, or parts with an `{"type": "image"}` for each of `pictures`, in order.
        prompts: Texts, or token ids.
        seeds: Of all choices, or one for each prompt; each choice draws from its own generator.
        max_tokens: Of each choice; None as far as its slot reaches, but not beyond `most`.
        logprobs: None for none, else how many of the likeliest tokens are told beside the chosen.
        unverified: Whether features that no gate speaks for may steer, if the policy permits it.
        compare: Whether each choice has a plain twin: the same seed and pictures, and no changes.
        notes: What the answer warns of besides what the host finds.
        streamed: Whether `Wrote` events are wanted; else all of it stands in `Ended`.
        seconds: How long it may take, queueing included.
    """

    id: str
    tenant: str = ""
    messages: tuple[Mapping[str, Any], ...] | None = None
    pictures: tuple[PictureOrder, ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    n: int = 1
    seeds: tuple[int, ...] = (0,)
    sampling: SamplingOrder = field(default_factory=SamplingOrder)
    max_tokens: int | None = None
    most: int = 4096
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    edits: tuple[EditOrder, ...] = ()
    steering: tuple[SteeringOrder, ...] = ()
    unverified: bool = False
    compare: bool = False
    notes: tuple[str, ...] = ()
    streamed: bool = False
    seconds: float = 300.0

    def seed_of(self, place: int) -> int:
        """The seed of a prompt's choices."""
        return self.seeds[place % len(self.seeds)]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """First event: what the rows carry.

    Attributes:
        patch: The digest of edits and steering together.
        exact, vif, strain: Of the edits, as for pictures.
        steering: A report per steerer of the order: features with scores, vectors, norms, digests.
        whole: Per site what all entries together come to.
        backpatch: The plan of back-patching after dropping, with the columns that it writes; of
            several prompts one each, unless they agree.
        prompts: What was read, as text, per prompt; of a conversation an empty one.
        prompt_tokens: How many tokens that was.
        engine: Which engine, and its bounds.
        unverified: Per dictionary, features that no gate speaks for and that steer all the same.
    """

    patch: str
    exact: bool
    vif: float
    strain: float
    warnings: tuple[str, ...]
    steering: tuple[Mapping[str, Any], ...]
    whole: tuple[Mapping[str, Any], ...]
    backpatch: tuple[Mapping[str, Any], ...]
    prompts: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    engine: Mapping[str, Any]
    unverified: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Likely:
    """A token and its log-probability before bias, penalties and temperature."""

    text: str
    logprob: float


@dataclass(frozen=True, kw_only=True)
class TokenTold(Likely):
    """A token that was drawn, and the likeliest of its place."""

    top: tuple[Likely, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """More of a choice; `tokens` only where log-probabilities are wanted."""

    index: int
    plain: bool
    text: str
    tokens: tuple[TokenTold, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A choice is whole.

    Attributes:
        text, tokens: What no `Wrote` has told.
        finish: `stop` at an end-of-sequence token or a stop string, `length` at a bound, `error`
            where this choice broke and others did not: `facts` say how.
        prompt_tokens, cached_tokens, completion_tokens: Read; of these from the prefix cache;
            written.
        facts: Seed, tokens steered per site, batch, seconds: for the answer's `tiller` object.
    """

    index: int
    plain: bool
    text: str
    tokens: tuple[TokenTold, ...]
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    facts: Mapping[str, Any]


TextEvent = Prepared | Wrote | Ended
