"""The picture engine: one step loop; rows join and leave between denoising steps.

An edit lives in the text encoder, the denoiser sees embeddings only: rows with different prompts,
edits, seeds, samplers, guidance and step counts share each denoiser call. Each row has its own
scheduler object and CPU generator. `exact` keeps one batch width and each row its slot, so that a
picture is the same to the bit alone and in a busy batch; `fast` packs the rows that are there.

Covered: guidance by a second conditioning beside the row, and a scale that the denoiser reads as an
input (FLUX.1 dev). Not covered: a scale that a UNet embeds in its time (`time_cond_proj_dim` of
distilled consistency models), step caches, which look at the batch.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engines import samplers
from engines.batch import Entry, Key, Place, Texts, assemble, fixed, key_of, packed
from engines.cache import Embedding, Embeddings, Reading
from engines.engine import Engine
from engines.errors import (
    BadRow,
    DeadlineExceeded,
    Full,
    NotANumber,
    refusal_of,
)
from engines.request import (
    LAST,
    Cancelled,
    Event,
    Failed,
    Finished,
    ImageRequest,
    Mode,
    Queued,
    Step,
)
from models.errors import Refusal
from models.family import TextToImage
from models.hosted import HostedModel

_log = logging.getLogger(__name__)
_UNKNOWN_PACE = 0.1
"""Seconds of a round, as long as none was measured."""


@dataclass(eq=False)
class Ticket:
    """What a caller holds while its row runs.

    Attributes:
        request: With its size filled in.
        shape: Of its latents, (channels, height, width).
        told: The last event was sent; nothing follows.
    """

    request: ImageRequest
    tell: Callable[[Event], None]
    sampling: samplers.Sampling
    shape: tuple[int, int, int]
    cancelled: bool = False
    told: bool = False
    asked_at: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        """The row leaves at the next step."""
        self.cancelled = True

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.asked_at

    @property
    def ending(self) -> Event | None:
        """Why the row must leave now, if it must."""
        if self.cancelled:
            return Cancelled()
        if self.age > self.request.seconds:
            return Failed(DeadlineExceeded(self.request.seconds))
        return None

    def hear(self, event: Event) -> None:
        """Tell the caller; one that cannot listen any more has cancelled."""
        if self.told:
            return
        self.told = isinstance(event, LAST)
        try:
            self.tell(event)
        except Exception:  # noqa: BLE001 - whatever broke there, the row's neighbours go on
            _log.exception("Nobody listens to %s", self.request.id)
            self.cancelled = True


@dataclass(eq=False)
class _Row:
    ticket: Ticket
    slot: int
    latents: Float[Tensor, "1 c h w"]
    prompt: Embedding
    negative: Embedding | None
    waited: float
    batch: int = 0

    @property
    def sampling(self) -> samplers.Sampling:
        return self.ticket.sampling

    def entry(self) -> Entry:
        return Entry(
            latents=self.sampling.scaled(self.latents),
            timestep=self.sampling.timestep,
            conditional=self.prompt.conditioning,
            unconditional=None if self.negative is None else self.negative.conditioning,
        )


class DiffusionEngine(Engine):
    """Draws the pictures of one hosted model on one thread of its own.

    Args:
        hosted: A text-to-image model.
        slots: Rows that are drawn at once.
        mode: `exact` or `fast`.
        max_waiting: Requests that may wait; more are refused with `Full`.
        cache_bytes: For embeddings of prompts, keyed by content.
        threads: Of torch in the owner thread.
    """

    def __init__(
        self,
        hosted: HostedModel,
        *,
        slots: int = 8,
        mode: Mode = "exact",
        max_waiting: int = 64,
        cache_bytes: int = 64 * 2**20,
        threads: int = 1,
    ) -> None:
        if not isinstance(hosted.family, TextToImage):
            raise TypeError(f"{hosted.name} draws no pictures")
        self.hosted, self.family = hosted, hosted.family
        self.slots, self.max_waiting = slots, max_waiting
        self.mode: Mode = mode
        self.embeddings = Embeddings(hosted, hosted.family, cache_bytes, together=mode == "fast")
        self._waiting: deque[Ticket] = deque()
        self._rows: dict[Key, list[_Row]] = {}
        self._texts: dict[Key, Texts] = {}
        self._pace = _UNKNOWN_PACE
        super().__init__(hosted.name, threads)
        self._owner.start()

    # --- asked from any thread --------------------------------------------------------------------

    def submit(self, request: ImageRequest, tell: Callable[[Event], None]) -> Ticket:
        """Queue a row. `tell` is called on the owner thread and must not block.

        Raises:
            Full, Draining: Nothing was queued.
            EngineFailed: The owner thread is dead.
            PromptTooLong, UnknownSampler, BadSize, BadRow, UnknownSite, BadPatch: The request is to
                blame.
        """
        return self.submit_together([(request, tell)])[0]

    def submit_together(
        self, rows: Sequence[tuple[ImageRequest, Callable[[Event], None]]]
    ) -> list[Ticket]:
        """Queue rows that join at once if there is room for all of them: all or none.

        Raises:
            As `submit`.
        """
        tickets = [self._admitted(request, tell) for request, tell in rows]
        with self._owner.wake:
            self._check_open()
            ahead = len(self._waiting)
            if ahead + len(tickets) > self.max_waiting:
                raise Full(ahead, self._estimate())
            for place, ticket in enumerate(tickets, ahead):
                # Told before anybody can take it up, so that it is the first event.
                ticket.hear(Queued(ahead=place))
                self._waiting.append(ticket)
            self._owner.notify()
        return tickets

    async def stream(self, request: ImageRequest) -> AsyncIterator[Event]:
        """The row's events; leaving the loop early cancels the row."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        ticket = self.submit(request, tell)
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, LAST):
                    return
        finally:
            ticket.cancel()

    def load(self) -> dict[str, int | float | str]:
        """How busy it is."""
        return {
            "active": self._active(),
            "waiting": len(self._waiting),
            "slots": self.slots,
            "mode": self.mode,
            "embedding_hits": self.embeddings.kept.hits,
            "embedding_misses": self.embeddings.kept.misses,
            "embedding_bytes": self.embeddings.kept.used,
            "round_seconds": self._pace,
        }

    # --- admission, on the caller's thread --------------------------------------------------------

    def _admitted(self, request: ImageRequest, tell: Callable[[Event], None]) -> Ticket:
        """Everything that can be wrong with a request is found before it has a slot."""
        family, hosted = self.family, self.hosted
        family.check_prompt(hosted, request.prompt)
        family.check_negative(hosted, request.negative_prompt)
        if not np.isfinite(request.guidance):
            raise BadRow("guidance_scale", "The guidance scale is not finite.", "Use 1 to 20.")
        hosted.check(request.patch)
        height, width = family.default_size(hosted)
        sized = replace(request, height=request.height or height, width=request.width or width)
        shape = family.latent_shape(hosted, sized.height or height, sized.width or width)
        sampling = samplers.begin(
            family, hosted, request.sampler, request.steps, request.seed, shape
        )
        return Ticket(sized, tell, sampling, shape)

    def _estimate(self) -> float:
        """Seconds until one who waits gets a slot, from the steps that are still to go."""
        rows = [row.ticket for rows in list(self._rows.values()) for row in list(rows)]
        steps = sum(t.sampling.total - t.sampling.done for t in (*rows, *self._waiting))
        return max(1.0, self._pace * steps / self.slots)

    # --- on the owner thread ----------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether a row runs or waits."""
        return bool(self._waiting) or self._active() > 0

    def _active(self) -> int:
        return sum(len(rows) for rows in list(self._rows.values()))

    @torch.inference_mode()
    def round(self) -> None:
        """Rows that are over leave, waiting ones join, everybody takes one step."""
        started = time.monotonic()
        self._leave()
        self._join()
        for key in list(self._rows):
            self._tick(key)
        if self._rows:
            self._pace = 0.9 * self._pace + 0.1 * (time.monotonic() - started)

    def end(self, why: Refusal | None) -> None:
        """Tell everybody that nothing comes any more."""
        with self._owner.wake:
            waiting, self._waiting = self._waiting, deque()
            rows, self._rows = self._rows, {}
        active = [row.ticket for of in rows.values() for row in of]
        for ticket in (*active, *waiting):
            ticket.hear(Cancelled() if why is None else Failed(why))

    def _leave(self) -> None:
        for rows in self._rows.values():
            _sweep(rows, lambda row: row.ticket)
        with self._owner.wake:
            _sweep(self._waiting, lambda ticket: ticket)
        self._rows = {key: rows for key, rows in self._rows.items() if rows}
        self._texts = {key: texts for key, texts in self._texts.items() if key in self._rows}

    def _join(self) -> None:
        """Whoever finds a free slot reads its texts and stands in its batch."""
        with self._owner.wake:
            free = self.slots - self._active()
            joining = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        for ticket, own in zip(joining, self._read(joining), strict=True):
            try:
                self._stand(ticket, [_embedded(reading) for reading in own])
            except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
                ticket.hear(Failed(refusal_of(broken)))

    def _read(self, joining: Sequence[Ticket]) -> list[list[Embedding | Refusal]]:
        """Per ticket what its prompt says, and its negative if it has one."""
        wanted = [self._readings(ticket.request) for ticket in joining]
        found = iter(self.embeddings.read([reading for own in wanted for reading in own]))
        return [[next(found) for _ in own] for own in wanted]

    def _readings(self, request: ImageRequest) -> tuple[Reading, ...]:
        """What the row's encoders have to read: the prompt, and its negative if it has one."""
        prompt = Reading(text=request.prompt, patch=request.patch, beside=request.beside)
        if not self.family.is_guided(request.guidance):
            return (prompt,)
        patch = request.negative_patch
        return prompt, Reading(text=request.negative_prompt, patch=patch, negative=True)

    def _at_scale(self, read: Embedding, guidance: float) -> Embedding:
        """As this row reads it: some denoisers read the guidance scale itself."""
        said = self.family.with_guidance(self.hosted, read.conditioning, guidance)
        return replace(read, conditioning=said)

    def _stand(self, ticket: Ticket, own: Sequence[Embedding]) -> None:
        scale = ticket.request.guidance
        prompt, *negative = [self._at_scale(embedding, scale) for embedding in own]
        key = key_of(self.mode, ticket.shape, prompt.conditioning, guided=bool(negative))
        rows = self._rows.setdefault(key, [])
        taken = {row.slot for row in rows}
        hosted, draw = self.hosted, ticket.request.draw
        dtype = self.family.latents_dtype(hosted)
        latents = ticket.sampling.noise(ticket.shape, dtype, hosted.device, draw)
        rows.append(
            _Row(
                ticket=ticket,
                slot=next(i for i in range(self.slots) if i not in taken),
                latents=latents,
                prompt=prompt,
                negative=negative[0] if negative else None,
                waited=ticket.age,
            )
        )

    def _tick(self, key: Key) -> None:
        """One denoiser call for the rows of one key, one scheduler step for each."""
        rows = self._rows[key]
        for row, said in zip(list(rows), self._said(rows, key), strict=True):
            over = True
            if isinstance(said, Refusal):
                row.ticket.hear(Failed(said))
            else:
                over = self._advance(row, said)
            if over:
                rows.remove(row)

    def _said(self, rows: Sequence[_Row], key: Key) -> list[Tensor | Refusal]:
        """What the denoiser says of each row; if a call breaks, each row is tried by itself."""
        try:
            return list(self._denoise(rows, key))
        except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
            if len(rows) == 1:
                return [refusal_of(broken)]
            _log.warning("A batch of %d rows broke: %s", len(rows), broken)
            return [said for row in rows for said in self._said([row], key)]

    def _denoise(self, rows: Sequence[_Row], key: Key) -> list[Tensor]:
        places, width = self._places(rows, key)
        entries = [row.entry() for row in rows]
        latents, timesteps = assemble(entries, places, width)
        reads = self._texts.setdefault(key, Texts()).of(entries, places, width)
        said = self.family.denoise(self.hosted, latents, timesteps, reads)
        return [self._guided(row, place, said) for row, place in zip(rows, places, strict=True)]

    def _places(self, rows: Sequence[_Row], key: Key) -> tuple[list[Place], int]:
        if self.mode == "exact":
            slots = [row.slot for row in rows]
            places, width = fixed(slots, self.slots, guided=bool(key.guided))
        else:
            places, width = packed([row.negative is not None for row in rows])
        for row in rows:
            row.batch = max(row.batch, width)
        return places, width

    def _guided(
        self, row: _Row, place: Place, said: Float[Tensor, "batch c h w"]
    ) -> Float[Tensor, "1 c h w"]:
        alone = said[place.prompt : place.prompt + 1]
        if place.negative is None:
            return alone
        # Without a dimension it is not rounded to the latents' dtype: 3.3 stays 3.3 in bfloat16.
        scale = torch.tensor(row.ticket.request.guidance, dtype=torch.float32)
        return self.family.guide(alone, said[place.negative : place.negative + 1], scale)

    def _advance(self, row: _Row, said: Float[Tensor, "1 c h w"]) -> bool:
        """One scheduler step of one row; True when the row is over."""
        try:
            row.latents = row.sampling.step(said, row.latents)
            if not bool(torch.isfinite(row.latents).all()):
                raise NotANumber(row.sampling.done)  # noqa: TRY301 - as any refusal of this row
            self._tell(row)
        except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
            row.ticket.hear(Failed(refusal_of(broken)))
        return row.ticket.told

    def _tell(self, row: _Row) -> None:
        sampling, every = row.sampling, row.ticket.request.previews
        wanted = every and sampling.done % every == 0 and not sampling.over
        preview = self._picture(row) if wanted else None
        row.ticket.hear(Step(done=sampling.done, total=sampling.total, preview=preview))
        if sampling.over:
            row.ticket.hear(self._finished(row))

    def _finished(self, row: _Row) -> Finished:
        return Finished(
            image=self._picture(row),
            seed=row.ticket.request.seed,
            mode=self.mode,
            slots=self.slots,
            slot=row.slot,
            batch=row.batch,
            denoiser_dtype=str(self.family.denoiser_dtype(self.hosted)).removeprefix("torch."),
            tokens_changed=row.prompt.tokens_changed,
            negative_tokens_changed=0 if row.negative is None else row.negative.tokens_changed,
            cached=row.prompt.cached,
            waited=row.waited,
            seconds=row.ticket.age,
        )

    def _picture(self, row: _Row) -> np.ndarray:
        """Decoded alone, never in a batch that varies."""
        image = self.family.decode(self.hosted, row.latents)[0]
        if not bool(torch.isfinite(image).all()):
            raise NotANumber(row.sampling.done)
        return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def _embedded(read: Embedding | Refusal) -> Embedding:
    if isinstance(read, Refusal):
        raise read
    return read


def _sweep(queue: Any, ticket_of: Callable[[Any], Ticket]) -> None:
    """Take out whoever was cancelled or is too late."""
    for waiting in list(queue):
        ticket = ticket_of(waiting)
        ending = ticket.ending
        if ending is not None:
            queue.remove(waiting)
            ticket.hear(ending)
