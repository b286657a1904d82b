"""One text on its way: who asked for it, what it has so far, and what its caller hears."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engines.errors import DeadlineExceeded, refusal_of
from engines.slots.request import (
    LAST,
    Cancelled,
    Event,
    Failed,
    Finished,
    Generation,
    Reason,
    Scored,
    Token,
)
from engines.slots.sampling import Chosen, Draws
from engines.slots.stopping import Pieces, Stops
from models.errors import Refusal
from models.patch import Detour, Patch
from models.sight import Shown, Sight, Span, joined_spans

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Ticket:
    """What a caller holds while its texts are written.

    Attributes:
        request: As it was asked.
        ended: The texts whose last event was sent.
    """

    request: Generation
    tell: Callable[[Event], None]
    cancelled: bool = False
    ended: set[int] = field(default_factory=set)
    asked_at: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        """Its rows leave at the next step."""
        self.cancelled = True

    @property
    def told(self) -> bool:
        """Every text has ended; nothing follows."""
        return len(self.ended) == self.request.n

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.asked_at

    def ending(self, choice: int) -> Event | None:
        """Why its rows must leave now, if they must."""
        if self.cancelled:
            return Cancelled(choice=choice)
        if self.age > self.request.seconds:
            late = DeadlineExceeded(self.request.seconds, "text", "tokens")
            return Failed(choice=choice, why=late)
        return None

    def hear(self, event: Event) -> None:
        """Tell the caller; one that cannot listen any more has cancelled."""
        if isinstance(event, LAST):
            if event.choice in self.ended:
                return
            self.ended.add(event.choice)
        try:
            self.tell(event)
        except Exception:  # noqa: BLE001 - whatever broke there, the row's neighbours go on
            _log.exception("Nobody listens to %s", self.request.id)
            self.cancelled = True


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a row's tokens mean, from the model that writes them.

    Attributes:
        decode: Tokens to text, marks left out.
        spell: One token by itself.
        eos: Tokens that end a text.
        vocab: How many there are.
        engine, slots: Who writes.
        continues: A text goes on from its prompt; an encoder-decoder's begins anew.
    """

    decode: Callable[[Sequence[int]], str]
    spell: Callable[[int], str]
    eos: frozenset[int]
    vocab: int
    engine: str
    slots: int
    continues: bool = True


class Row:
    """One of a request's texts.

    Args:
        ticket: Whose it is.
        choice: Which of the request's texts.
        limit: Tokens that it may have.
        told: What its tokens mean.

    Attributes:
        done: Tokens that were run; their keys and values are kept.
        changed: Tokens that the patch changed, per place.
        patch: The request's, with the columns that its named positions mean here.
        shown: Its pictures; looked at when the first of their columns is run.
        uncut: Columns that one forward must hold whole.
        let_by: Decode steps of others since it could have joined.
    """

    def __init__(self, ticket: Ticket, choice: int, limit: int, told: Told) -> None:
        request = ticket.request
        self.ticket, self.choice, self.limit, self.told = ticket, choice, limit, told
        self.request, self.prompt = request, len(request.ids)
        self.patch = request.placed
        self.shown = None if request.sight is None else Shown(sight=request.sight)
        self.uncut = _uncut(self.patch, request.sight)
        self.tokens = list(request.ids)
        before = request.ids if told.continues else ()
        self.draws = Draws(
            request.sampling,
            seed=request.seed,
            choice=choice,
            prompt=before,
            vocab=told.vocab,
            logprobs=request.logprobs,
        )
        self.pieces, self.stops = Pieces(told.decode, before), Stops(request.stop)
        self.eos = frozenset() if request.ignore_eos else told.eos
        self.done = self.cached = self.batch = self.let_by = 0
        self.changed: Counter[str] = Counter()
        self.waited = self.first_token = 0.0
        self._said: list[str] = []
        self._whole = False

    @property
    def over(self) -> bool:
        """Its last event was sent."""
        return self.choice in self.ticket.ended

    @property
    def finished(self) -> bool:
        """It ended well."""
        return self._whole

    @property
    def reading(self) -> int:
        """Tokens of the prompt that were not run yet."""
        return self.prompt - self.done

    def within(self, start: int, tokens: int = 1) -> Patch:
        """What the patch means for a forward over these tokens of the row."""
        patch = self.patch
        return patch.within(start, tokens, self.prompt) if patch else patch

    def whole(self, stop: int) -> int:
        """Where a forward ends that would end before that column, and must cut nothing."""
        for first, end in self.uncut:
            if first < stop < end:
                stop = end
        return min(stop, self.prompt)

    def cuts(self, stop: int) -> bool:
        """Whether an end before that column would cut what must be whole."""
        return any(first < stop < end for first, end in self.uncut)

    def begin(self) -> None:
        """It has a place."""
        self.waited = self.ticket.age

    def fail(self, broken: BaseException) -> None:
        """It ends with a refusal."""
        self.ticket.hear(Failed(choice=self.choice, why=refusal_of(broken)))

    def ending(self) -> Event | None:
        """Why it must leave now, if it must."""
        return self.ticket.ending(self.choice)

    def take(self, chosen: Chosen) -> None:
        """Go on with this token, and say what can be said; the row may be over then."""
        try:
            self._take(chosen)
        except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
            self.fail(broken)

    def _take(self, chosen: Chosen) -> None:
        if len(self.tokens) == self.prompt:
            self.first_token = self.ticket.age
        position = len(self.tokens)
        self.draws.took(chosen.token)
        self.tokens.append(chosen.token)
        eos = chosen.token in self.eos
        said, stop = self.stops.feed("" if eos else self.pieces.add(chosen.token))
        reason: Reason | None = None
        if eos or stop is not None:
            reason = "stop"
        elif len(self.tokens) - self.prompt >= self.limit:
            reason = "length"
        if reason is not None and stop is None:
            more, stop = self.stops.feed(self.pieces.rest())
            said += more + self.stops.rest()
        self._said.append(said)
        self.ticket.hear(self._token(chosen, said, position, eos=eos))
        if reason is not None:
            self._whole = True
            self.ticket.hear(self._finished("stop" if stop is not None else reason, stop))

    def _token(self, chosen: Chosen, said: str, position: int, *, eos: bool) -> Token:
        own, top = None, ()
        if chosen.logprob is not None:
            own = self._scored(chosen.token, chosen.logprob)
            top = tuple(self._scored(token, logprob) for token, logprob in chosen.top)
        return Token(
            choice=self.choice,
            id=chosen.token,
            text=said,
            position=position,
            own=own,
            top=top,
            eos=eos,
        )

    def _scored(self, token: int, logprob: float) -> Scored:
        return Scored(id=token, text=self.told.spell(token), logprob=logprob)

    def _finished(self, reason: Reason, stop: str | None) -> Finished:
        return Finished(
            choice=self.choice,
            ids=tuple(self.tokens[self.prompt :]),
            text="".join(self._said),
            reason=reason,
            stop=stop,
            prompt_tokens=self.prompt,
            completion_tokens=len(self.tokens) - self.prompt,
            cached_tokens=self.cached,
            tokens_changed=dict(self.changed),
            seed=self.request.seed,
            engine=self.told.engine,
            slots=self.told.slots,
            batch=self.batch,
            waited=self.waited,
            first_token=self.first_token,
            seconds=self.ticket.age,
        )


def _uncut(patch: Patch, sight: Sight | None) -> tuple[Span, ...]:
    """Pictures, what sees itself in both directions, and all that a detour writes."""
    spans = [] if sight is None else list(sight.uncut)
    places = {o.positions for o in patch if isinstance(o, Detour)}
    for columns in places:
        if isinstance(columns, tuple):
            spans.append((columns[0], columns[-1] + 1))
    return joined_spans(spans)


def refuse(rows: Sequence[Row], why: Refusal | None) -> None:
    """End rows because nothing comes any more; with a reason if something broke."""
    for row in rows:
        if why is None:
            row.ticket.hear(Cancelled(choice=row.choice))
        else:
            row.fail(why)
