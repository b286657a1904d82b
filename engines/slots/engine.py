"""The language engine: rows join and leave between decoding steps, on one thread of a model.

What is the same for every way of writing stands in `LanguageEngine`: admission, the waiting room,
streams, cancels, deadlines, draining. `SlotEngine` writes all rows in one forward a step;
`engines.slots.generate` writes one at a time, for models that slots cannot hold.

Covered: texts, and pictures in the prompts of models that see, with a different patch on every row.
Not covered: beams.
"""

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import torch

from engines.engine import Engine
from engines.errors import BadGeneration, Full
from engines.slots.admission import check
from engines.slots.prefix import Prefixes
from engines.slots.request import LAST, Event, Generation, Queued
from engines.slots.row import Row, Ticket, Told, refuse
from engines.slots.scheduler import Scheduler
from engines.slots.sights import Sights
from engines.slots.waiting import Waiting
from models.errors import Refusal
from models.hosted import HostedModel
from models.language import Language
from models.vision_language import VisionLanguage

Kind = Literal["slots", "generate"]
_UNKNOWN_PACE = 0.05
"""Seconds of a round, as long as none was measured."""
MAX_WAITING, CAPACITY = 256, 2048
PATCH_BYTES, CACHE_BYTES, SIGHT_BYTES = 256 * 2**20, 256 * 2**20, 64 * 2**20


class LanguageEngine(Engine):
    """Writes the texts of one hosted model on one thread of its own.

    Args:
        hosted: A language model.
        slots: Rows that are written at once.
        capacity: Tokens of a row, prompt included; None for what the model reads, up to 2048.
        max_waiting: Rows that may wait; more are refused with `Full`.
        patch_bytes: Of the largest patch, and of all that are held at once.
        threads: Of torch in the owner thread.
    """

    kind: Kind

    def __init__(
        self,
        hosted: HostedModel,
        *,
        slots: int,
        capacity: int | None = None,
        max_waiting: int = MAX_WAITING,
        patch_bytes: int = PATCH_BYTES,
        threads: int = 1,
    ) -> None:
        if not isinstance(hosted.family, Language):
            raise TypeError(f"{hosted.name} writes no texts")
        family = hosted.family
        self.hosted, self.family, self.slots = hosted, family, slots
        most = family.context_length(hosted)
        self.capacity = min(most, CAPACITY if capacity is None else capacity)
        self.max_waiting, self.patch_bytes = max_waiting, patch_bytes
        self.told = Told(
            decode=lambda ids: family.detokenize(hosted, ids),
            spell=lambda token: family.detokenize(hosted, (token,), special=True),
            eos=frozenset(family.eos_ids(hosted)),
            vocab=family.vocab_size(hosted),
            engine=self.kind,
            slots=slots,
            continues=not getattr(hosted.modules["lm"].config, "is_encoder_decoder", False),
        )
        self._pace = _UNKNOWN_PACE
        super().__init__(hosted.name, threads)
        self.waiting = Waiting(self._owner.wake)

    # --- asked from any thread --------------------------------------------------------------------

    def submit(self, request: Generation, tell: Callable[[Event], None]) -> Ticket:
        """Queue the request's texts. `tell` is called on the owner thread and must not block.

        Raises:
            Full, Draining: Nothing was queued.
            EngineFailed: The owner thread is dead.
            BadGeneration, ContextTooLong, UnknownSite, BadPatch: The request is to blame.
        """
        rows = self._admitted(request, tell)
        ticket = rows[0].ticket
        with self._owner.wake:
            self._check_open()
            ahead = len(self.waiting)
            if ahead + len(rows) > self.max_waiting:
                raise Full(ahead, self._estimate())
            # Told before anybody can take them up, so that it is the first event.
            ticket.hear(Queued(ahead=ahead))
            self.waiting.put(rows)
            self._owner.notify()
        return ticket

    async def stream(self, request: Generation) -> AsyncIterator[Event]:
        """The events of all its texts; leaving the loop early cancels them."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        ticket, ended = self.submit(request, tell), 0
        try:
            while ended < request.n:
                event = await events.get()
                ended += isinstance(event, LAST)
                yield event
        finally:
            ticket.cancel()

    def load(self) -> dict[str, int | float | str]:
        """How busy it is."""
        return {
            "engine": self.kind,
            "active": len(self.rows()),
            "waiting": len(self.waiting),
            "slots": self.slots,
            "capacity": self.capacity,
            "round_seconds": self._pace,
        }

    # --- admission, on the caller's thread --------------------------------------------------------

    def _admitted(self, request: Generation, tell: Callable[[Event], None]) -> list[Row]:
        limit = check(request, vocab=self.told.vocab, capacity=self.capacity)
        if request.n > self.max_waiting:
            most = self.max_waiting
            raise BadGeneration("n", f"{request.n} texts cannot wait here.", f"Use up to {most}.")
        self.check_patch(request)
        ticket = Ticket(request, tell)
        return [Row(ticket, choice, limit, self.told) for choice in range(request.n)]

    def check_patch(self, request: Generation) -> None:
        """UnknownSite, BadPatch or BadGeneration if no row can carry the patch."""
        self.hosted.check(request.patch)
        if request.sight is not None and not isinstance(self.family, VisionLanguage):
            problem = f"{self.hosted.name} reads no pictures."
            raise BadGeneration("messages", problem, "Ask a vision-language model, or in words.")
        if request.patch.nbytes > self.patch_bytes:
            problem = f"The changes take {request.patch.nbytes} bytes."
            remedy = f"Use up to {self.patch_bytes} bytes of edits and steering."
            raise BadGeneration("edits", problem, remedy)

    def _estimate(self) -> float:
        """Seconds until one who waits gets a place, from the tokens that may still be written."""
        going = sum(row.limit - (len(row.tokens) - row.prompt) for row in self.rows())
        tokens = going + self.waiting.tokens_asked()
        return max(1.0, self._pace * tokens / self.slots)

    # --- on the owner thread ----------------------------------------------------------------------

    @abstractmethod
    def rows(self) -> list[Row]:
        """Those that have a place."""

    @abstractmethod
    def work(self) -> None:
        """What one round does after those that are over have left."""

    @abstractmethod
    def sweep(self) -> None:
        """Rows with a place that were cancelled or are too late leave."""

    def busy(self) -> bool:
        """Whether a row is written or waits."""
        return bool(self.waiting) or bool(self.rows())

    @torch.inference_mode()
    def round(self) -> None:
        """Rows that are over leave, waiting ones join, everybody goes one token on."""
        started = time.monotonic()
        self.waiting.sweep()
        self.sweep()
        self.work()
        if self.rows():
            self._pace = 0.9 * self._pace + 0.1 * (time.monotonic() - started)

    @abstractmethod
    def forget(self) -> list[Row]:
        """Take away all rows that have a place."""

    def end(self, why: Refusal | None) -> None:
        """Tell everybody that nothing comes any more."""
        with self._owner.wake:
            waiting = self.waiting.empty()
        refuse([*self.forget(), *waiting], why)


class SlotEngine(LanguageEngine):
    """All rows in one forward a step.

    Args:
        hosted: A language model of a decoder family.
        slots: Rows that are written at once.
        budget: Tokens of prompts that are read between two steps.
        patience: Steps of others that a row with a free slot lets by until its prompt is due: the
            oldest such prompt, one between two steps, is read beyond the budget. None: the budget
            is never exceeded.
        cache_bytes: For keys and values of prompts, keyed by content; 0 for none.
        block: Tokens of a piece of that cache.
        sight_bytes: For what the vision tower saw, keyed by content; 0 for none.
        settings: As of `LanguageEngine`.
    """

    kind: Kind = "slots"

    def __init__(  # noqa: PLR0913 - every bound is stated by name
        self,
        hosted: HostedModel,
        *,
        slots: int = 16,
        budget: int = 512,
        patience: int | None = 2,
        cache_bytes: int = CACHE_BYTES,
        block: int = 16,
        sight_bytes: int = SIGHT_BYTES,
        **settings: Any,
    ) -> None:
        super().__init__(hosted, slots=slots, **settings)
        self.scheduler = Scheduler(
            hosted,
            self.family,
            Prefixes(hosted, self.family, cache_bytes, block),
            slots=slots,
            capacity=self.capacity,
            budget=budget,
            patience=patience,
            patch_bytes=self.patch_bytes,
            sights=Sights(hosted, sight_bytes),
        )
        self._owner.start()

    def load(self) -> dict[str, int | float | str]:
        """How busy it is, and what it knows of prompts."""
        scheduler, prefixes = self.scheduler, self.scheduler.prefixes
        return super().load() | {
            "steps": scheduler.steps,
            "read_tokens": scheduler.read_tokens,
            "written_tokens": scheduler.written_tokens,
            "slot_bytes": scheduler.cache.nbytes,
            "prefix_hit_tokens": prefixes.hit_tokens,
            "prefix_asked_tokens": prefixes.asked_tokens,
            "prefix_bytes": prefixes.kept.used,
            "sights_asked": scheduler.sights.asked,
            "sights_known": scheduler.sights.known,
            "sight_bytes": scheduler.sights.kept.used,
        }

    def rows(self) -> list[Row]:
        """Those that have a slot."""
        return self.scheduler.rows

    def sweep(self) -> None:
        """Rows that were cancelled or are too late free their slots."""
        self.scheduler.sweep()

    def work(self) -> None:
        """Prompts are read up to the budget, then every row writes one token."""
        self.scheduler.read(self.waiting)
        self.scheduler.write(self.waiting)

    def forget(self) -> list[Row]:
        """Empty all slots."""
        return self.scheduler.clear()
