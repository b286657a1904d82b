"""An order as an engine's requests, and the engine's events as the order's caller hears them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engines.errors import Draining
from engines.slots.request import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Generation,
    Queued,
    Sampling,
    Scored,
    Token,
)
from models.patch import Patch
from models.sight import Sight
from models.site import Site
from service.backpatching import backpatched, is_detour
from service.orders import Ended, Likely, TextEvent, TextOrder, TokenTold, Wrote
from service.problems import problem_of


@dataclass(frozen=True, kw_only=True)
class Line:
    """One prompt with its choices, or their plain twins.

    Attributes:
        place: Of the prompt in the order.
    """

    place: int
    plain: bool
    request: Generation


def lines_of(
    order: TextOrder,
    prompts: Sequence[Sequence[int]],
    patches: Sequence[Patch],
    capacity: int,
    sights: Sequence[Sight | None] = (),
) -> list[Line]:
    """The engine's requests: every prompt under its patch, and plain where twins are wanted.

    Args:
        order: What was asked.
        prompts: Token ids.
        patches: One for each prompt.
        capacity: Tokens of a row.
        sights: The pictures of each prompt; empty where no prompt has one.
    """
    lines: list[Line] = []
    for place, (ids, patch) in enumerate(zip(prompts, patches, strict=True)):
        for plain in (False, True) if order.compare else (False,):
            request = Generation(
                id=f"{order.id}-{place}{'-plain' if plain else ''}",
                realm=order.tenant,
                ids=tuple(ids),
                sight=sights[place] if sights else None,
                patch=Patch() if plain else patch,
                sampling=Sampling(**asdict(order.sampling)),
                max_tokens=_tokens(order, len(ids), capacity),
                stop=order.stop,
                n=order.n,
                seed=order.seed_of(place),
                logprobs=order.logprobs,
                seconds=order.seconds,
            )
            lines.append(Line(place=place, plain=plain, request=request))
    return lines


def _tokens(order: TextOrder, prompt: int, capacity: int) -> int | None:
    """As asked for; else as many as fit, up to the service's bound; None lets the engine refuse."""
    if order.max_tokens is not None:
        return order.max_tokens
    room = capacity - prompt
    return min(order.most, room) if room > 0 else None


class Telling:
    """The engine's events as the order's caller hears them, bundle by bundle.

    A choice that breaks ends with the reason `error`, and the others go on; if every choice that is
    not a plain twin breaks, so does the answer.
    """

    def __init__(self, order: TextOrder, lines: Sequence[Line]) -> None:
        self.order, self.lines = order, lines
        self._said: dict[tuple[int, int], list[Token]] = {}
        self._written = Counter[tuple[int, int]]()
        self._hopeful = order.n * sum(not line.plain for line in lines)

    def of(self, bundle: Iterable[tuple[int, Event]]) -> Iterator[TextEvent]:
        """What one bundle says; of each choice its words stand together.

        Raises:
            Refusal: Of the last choice, if all have failed.
        """
        for number, event in bundle:
            match event:
                case Token():
                    self._said.setdefault((number, event.choice), []).append(event)
                    self._written[number, event.choice] += 1
                case Finished():
                    yield self._ended(number, event)
                case Failed():
                    yield self._broken(number, event)
                case Cancelled():
                    raise Draining  # nobody else cancels our rows
                case Queued():
                    pass
        if self.order.streamed:
            yield from self._wrote()

    def _wrote(self) -> Iterator[Wrote]:
        said, self._said = self._said, {}
        for (number, choice), tokens in said.items():
            yield Wrote(
                index=self._index(number, choice),
                plain=self.lines[number].plain,
                text="".join(token.text for token in tokens),
                tokens=_scored(tokens),
            )

    def _ended(self, number: int, event: Finished) -> Ended:
        tokens = self._said.pop((number, event.choice), [])
        tail = "".join(token.text for token in tokens)
        return Ended(
            index=self._index(number, event.choice),
            plain=self.lines[number].plain,
            text=tail if self.order.streamed else event.text,
            tokens=_scored(tokens),
            finish=event.reason,
            prompt_tokens=event.prompt_tokens,
            cached_tokens=event.cached_tokens,
            completion_tokens=event.completion_tokens,
            facts=_facts(event),
        )

    def _broken(self, number: int, event: Failed) -> Ended:
        tokens, line = self._said.pop((number, event.choice), []), self.lines[number]
        self._hopeful -= not line.plain
        if not self._hopeful:
            raise event.why
        return Ended(
            index=self._index(number, event.choice),
            plain=line.plain,
            text="".join(token.text for token in tokens),
            tokens=_scored(tokens),
            finish="error",
            prompt_tokens=len(line.request.ids),
            cached_tokens=0,
            completion_tokens=self._written[number, event.choice],
            facts={"seed": line.request.seed, "error": problem_of(event.why)},
        )

    def _index(self, number: int, choice: int) -> int:
        return self.lines[number].place * self.order.n + choice


def _scored(tokens: Iterable[Token]) -> tuple[TokenTold, ...]:
    """Tokens with their log-probabilities, if those were asked for; the end mark says nothing."""
    return tuple(
        TokenTold(text=t.own.text, logprob=t.own.logprob, top=tuple(map(_likely, t.top)))
        for t in tokens
        if t.own is not None and not t.eos
    )


def _likely(scored: Scored) -> Likely:
    return Likely(text=scored.text, logprob=scored.logprob)


def _facts(event: Finished) -> dict[str, Any]:
    """For the answer's `tiller` object."""
    return {
        "seed": event.seed,
        "stop": event.stop,
        "tokens_steered": steered(event.tokens_changed),
        "tokens_backpatched": backpatched(event.tokens_changed),
        "tokens_changed": dict(event.tokens_changed),
        "prompt_tokens": event.prompt_tokens,
        "cached_tokens": event.cached_tokens,
        "completion_tokens": event.completion_tokens,
        "batch": event.batch,
        "first_token_seconds": round(event.first_token, 4),
        "seconds": round(event.seconds, 4),
    }


def steered(changed: Mapping[str, int]) -> int:
    """Tokens whose stream was moved; several sites move the same tokens."""
    streams = (
        tokens
        for place, tokens in changed.items()
        if not is_detour(place) and Site.parse(place).kind == "stream"
    )
    return max(streams, default=0)
