"""What crosses the door between the gateway and a language host: plain data, also over Ray.

Every name is a digest by then. What a picture's order looks like stands in `service.workbench`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

StrengthMode = Literal["amp", "max", "raw", "unit", "clamp", "min_clamp", "multiply", "ablate"]
Steered = Literal["last_and_generated", "all", "prompt", "generated"]
Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, kw_only=True)
class EditOrder:
    """An edit by its content; `label` is for error messages only."""

    digest: str
    strength: float
    label: str


@dataclass(frozen=True, kw_only=True)
class FeatureOrder:
    """One feature of one of the model's dictionaries."""

    sae: str
    feature: int
    strength: float | None


@dataclass(frozen=True, kw_only=True)
class VectorOrder:
    """A direction by its content; `label` is what the answer calls it."""

    digest: str
    strength: float
    label: str


@dataclass(frozen=True, kw_only=True)
class PresetOrder:
    """Where a steering came from; `fingerprint` is of the weights that it was made for."""

    name: str
    version: int
    digest: str
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        """As the answer says it."""
        return {"name": self.name, "version": self.version, "digest": self.digest}


@dataclass(frozen=True, kw_only=True)
class SteeringOrder:
    """One entry of a request's `steering`, as `service.schema_language` explains its keys."""

    features: tuple[FeatureOrder, ...] = ()
    vectors: tuple[VectorOrder, ...] = ()
    concept: str | None = None
    strength: float | None = None
    sae: str | None = None
    count: int = 1
    mode: StrengthMode = "amp"
    a_max: Literal["neutral", "prompt", "live"] = "neutral"
    clamp_in: Literal["activation", "a_max", "max"] = "activation"
    unit: Literal["raw", "unit", "stream"] = "raw"
    sites: tuple[str, ...] = ()
    positions: Steered = "last_and_generated"
    skip_special: bool = False
    min_output_score: float | None = None
    on_low_score: Literal["reject", "warn", "allow"] = "reject"
    preset: PresetOrder | None = None


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
        messages: A conversation for the model's chat template; None for `prompts`.
        prompts: Texts, or token ids.
        seed: Of all choices; each draws from its own generator of it.
        max_tokens: Of each choice; None as far as its slot reaches, but not beyond `most`.
        logprobs: None for none, else how many of the likeliest tokens are told beside the chosen.
        compare: Whether each choice has a plain twin: the same seed, no edits and no steering.
        streamed: Whether `Wrote` events are wanted; else all of it stands in `Ended`.
        seconds: How long it may take, queueing included.
    """

    id: str
    tenant: str = ""
    messages: tuple[Mapping[str, str], ...] | None = None
    prompts: tuple[str | tuple[int, ...], ...] = ()
    n: int = 1
    seed: int = 0
    sampling: SamplingOrder = field(default_factory=SamplingOrder)
    max_tokens: int | None = None
    most: int = 4096
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    edits: tuple[EditOrder, ...] = ()
    steering: tuple[SteeringOrder, ...] = ()
    compare: bool = False
    streamed: bool = False
    seconds: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """First event: what the rows carry.

    Attributes:
        patch: The digest of edits and steering together.
        exact, vif, strain: Of the edits, as for pictures.
        steering: A report per entry of the order: features with scores, vectors, norms, digests.
        whole: Per site what all entries together come to.
        prompts: What was read, as text, per prompt.
        prompt_tokens: How many tokens that was.
        engine: Which engine, and its bounds.
    """

    patch: str
    exact: bool
    vif: float
    strain: float
    warnings: tuple[str, ...]
    steering: tuple[Mapping[str, Any], ...]
    whole: tuple[Mapping[str, Any], ...]
    prompts: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    engine: Mapping[str, Any]


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
