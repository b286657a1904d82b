"""Everything that can be wrong with a request is found before it has a row."""

import math
from collections.abc import Iterator, Sequence

from engines.errors import BadGeneration, ContextTooLong
from engines.slots.request import Generation, Sampling
from models.errors import BadPatch
from models.patch import Detour, Patch

_MOST_LOGPROBS = 20
_MOST_TEXTS = 128
_MOST_STOPS = 64
_MOST_BIASES = 4096
_BIAS = 100.0
COLDEST, HOTTEST = 1e-4, 100.0
"""Temperatures above 0: float32 holds what logits become when they are divided by them."""
LEAST_REPETITION, MOST_REPETITION = 0.01, 100.0
_PENALTY = 2.0


def check(request: Generation, *, vocab: int, capacity: int) -> int:
    """How many tokens each text of the request may have.

    Args:
        request: What was asked.
        vocab: Size of the vocabulary.
        capacity: Tokens that a row holds, prompt included.

    Raises:
        BadGeneration: A number, or a token, that nothing can be written with.
        ContextTooLong: Prompt and answer do not fit a row.
        BadPatch: The patch names tokens that the row can never have.
    """
    wrong = (*_wrong(request, vocab), *_unstopping(request.stop))
    for param, problem, remedy in (*wrong, *_unsampled(request.sampling, vocab)):
        raise BadGeneration(param, problem, remedy)
    room = capacity - len(request.ids)
    limit = room if request.max_tokens is None else request.max_tokens
    if limit > room or room < 1:
        raise ContextTooLong(len(request.ids), max(limit, 1), capacity)
    _check_places(request.placed, len(request.ids), limit)
    return limit


Wrong = tuple[str, str, str]
"""The field, what is wrong with it, and what to do."""


def _wrong(request: Generation, vocab: int) -> Iterator[Wrong]:
    if not request.ids:
        yield "prompt", "The prompt has no tokens.", "Write something."
    seen = frozenset() if request.sight is None else frozenset(request.sight.visual)
    known = (0 <= token < vocab for at, token in enumerate(request.ids) if at not in seen)
    if not all(known):
        yield "prompt", f"A token is none of the model's {vocab}.", "Use the model's tokenizer."
    if request.max_tokens is not None and request.max_tokens < 1:
        yield "max_tokens", "A text has at least one token.", "Use 1 or more."
    if not 1 <= request.n <= _MOST_TEXTS:
        yield "n", "So many texts cannot be asked for.", f"Use 1 to {_MOST_TEXTS}."
    if not (request.logprobs is None or 0 <= request.logprobs <= _MOST_LOGPROBS):
        yield "top_logprobs", "So many likely tokens are not told.", f"Use 0 to {_MOST_LOGPROBS}."
    if not abs(request.seed) < 2**63:
        yield "seed", "The seed is too large a number.", "Use a number from 0 to 2^63 - 1."


def _unstopping(stop: Sequence[str]) -> Iterator[Wrong]:
    if len(stop) > _MOST_STOPS:
        yield "stop", f"There are {len(stop)} stop strings.", f"Use at most {_MOST_STOPS}."
    if not all(stop):
        yield "stop", "A stop string is empty.", "Leave it out."


def _unsampled(sampling: Sampling, vocab: int) -> Iterator[Wrong]:
    bounds = (
        ("temperature", _warm(sampling.temperature), f"0, or {COLDEST:g} to {HOTTEST:g}"),
        ("top_p", 0 < sampling.top_p <= 1, "more than 0, up to 1"),
        ("top_k", sampling.top_k >= 0, "0 or more"),
        ("min_p", 0 <= sampling.min_p <= 1, "0 to 1"),
        ("presence_penalty", abs(sampling.presence_penalty) <= _PENALTY, "-2 to 2"),
        ("frequency_penalty", abs(sampling.frequency_penalty) <= _PENALTY, "-2 to 2"),
        (
            "repetition_penalty",
            LEAST_REPETITION <= sampling.repetition_penalty <= MOST_REPETITION,
            f"{LEAST_REPETITION:g} to {MOST_REPETITION:g}",
        ),
    )
    for name, inside, use in bounds:
        value = getattr(sampling, name)
        if not (inside and math.isfinite(value)):
            yield name, f"{name} cannot be {value}.", f"Use {use}."
    bias = sampling.logit_bias
    if len(bias) > _MOST_BIASES:
        yield "logit_bias", f"{len(bias)} tokens are biased.", f"Use at most {_MOST_BIASES}."
    for token, value in bias.items():
        if not 0 <= token < vocab:
            yield "logit_bias", f"The model has no token {token}.", f"Use 0 to {vocab - 1}."
        if not abs(value) <= _BIAS:
            problem = f"The bias of token {token} is {value:g}."
            yield "logit_bias", problem, f"Use -{_BIAS:g} to {_BIAS:g}."


def _warm(temperature: float) -> bool:
    return temperature == 0 or COLDEST <= temperature <= HOTTEST


def _check_places(patch: Patch, prompt: int, limit: int) -> None:
    for operation in patch:
        places = getattr(operation, "positions", None)
        if not isinstance(places, tuple):
            continue
        if isinstance(operation, Detour) and places[-1] >= prompt:
            raise BadPatch(f"Token {places[-1]} is back-patched, but the prompt has {prompt}.")
        if places[-1] >= prompt + limit:
            end = prompt + limit
            raise BadPatch(f"Token {places[-1]} is changed, but the row ends before {end}.")
