"""The picture engine: one step loop; rows join and leave between denoising steps.

An edit lives in the text encoder, the denoiser sees embeddings only: rows with different prompts,
edits, seeds, samplers, guidance and step counts share each denoiser call. Each row has its own
scheduler object and CPU generator. `exact` keeps one batch width and each row its slot, so that a
picture is the same to the bit alone and in a busy batch; `fast` packs the rows that are there.
"""

import hashlib
import inspect
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engines.errors import DeadlineExceeded, Draining, EngineFailed, Full, NotANumber
from engines.request import Cancelled, Event, Failed, Finished, ImageRequest, Mode, Step
from engines.store import Kept
from models.errors import Refusal
from models.family import Conditioning, TextToImage
from models.hosted import HostedModel
from models.patch import Patch

_WIDTHS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(eq=False)
class Ticket:
    """What a caller holds while its row runs."""

    request: ImageRequest
    tell: Callable[[Event], None]
    cancelled: bool = False
    asked_at: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        """The row leaves at the next step."""
        self.cancelled = True


@dataclass(eq=False)
class _Row:
    ticket: Ticket
    latents: Float[Tensor, "1 c h w"]
    conditional: Conditioning
    unconditional: Conditioning | None
    scheduler: Any
    generator: torch.Generator
    timesteps: Tensor
    tokens_changed: int
    cached: bool
    takes_generator: bool
    done: int = 0

    @property
    def request(self) -> ImageRequest:
        return self.ticket.request

    @property
    def guided(self) -> bool:
        return self.unconditional is not None


@dataclass(eq=False)
class _Background:
    work: Generator[Any, None, Any]
    on_item: Callable[[Any], None]
    on_done: Callable[[Any], None]
    on_error: Callable[[BaseException], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class DiffusionEngine:
    """Draws the pictures of one hosted model on one thread of its own.

    Args:
        hosted: A text-to-image model.
        slots: Rows that share a denoiser call.
        mode: `exact` or `fast`.
        max_waiting: Requests that may wait; more are refused with `Full`.
        cache_bytes: For embeddings of prompts, keyed by content.
        threads: Of torch in the owner thread.
    """

    def __init__(  # noqa: PLR0913 - an engine's settings
        self,
        hosted: HostedModel,
        *,
        slots: int = 4,
        mode: Mode = "exact",
        max_waiting: int = 64,
        cache_bytes: int = 64 * 2**20,
        threads: int = 1,
    ) -> None:
        if not isinstance(hosted.family, TextToImage):
            raise TypeError(f"{hosted.name} draws no pictures")
        self.hosted, self.family = hosted, hosted.family
        self.slots, self.mode, self.max_waiting, self.threads = slots, mode, max_waiting, threads
        self.embeddings: Kept[tuple[Conditioning, int]] = Kept(cache_bytes)
        self._waiting: deque[Ticket] = deque()
        self._rows: dict[tuple[int, ...], list[_Row | None]] = {}
        self._background: deque[_Background] = deque()
        self._wake = threading.Condition()
        self._draining = self._stopped = False
        self._beat = time.monotonic()
        self._pace = 0.1
        self._thread = threading.Thread(target=self._own, name=f"owner-{hosted.name}", daemon=True)
        self._thread.start()

    # --- asked from any thread --------------------------------------------------------------------

    def submit(self, request: ImageRequest, tell: Callable[[Event], None]) -> Ticket:
        """Queue a row. `tell` is called on the owner thread and must not block.

        Raises:
            Full, Draining: Nothing was queued.
            PromptTooLong, UnknownSampler, BadSize, UnknownSite, BadPatch: The request is to blame.
        """
        self._validate(request)
        with self._wake:
            if self._draining or self._stopped:
                raise Draining
            if len(self._waiting) >= self.max_waiting:
                raise Full(len(self._waiting), self._wait_estimate())
            ticket = Ticket(request, tell)
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    async def stream(self, request: ImageRequest) -> AsyncIterator[Event]:
        """The row's events; leaving the loop early cancels the row."""
        import asyncio  # noqa: PLC0415 - only the asynchronous face needs it

        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        ticket = self.submit(
            request, lambda event: _post(loop, events, event)
        )
        try:
            while True:
                event = await events.get()
                yield event
                if not isinstance(event, Step):
                    return
        finally:
            ticket.cancel()

    def background(
        self,
        work: Generator[Any, None, Any],
        on_item: Callable[[Any], None],
        on_done: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> _Background:
        """Drain a generator on the owner thread, one item between two denoising steps."""
        task = _Background(work, on_item, on_done, on_error)
        with self._wake:
            if self._draining or self._stopped:
                raise Draining
            self._background.append(task)
            self._wake.notify()
        return task

    def load(self) -> dict[str, int | float | str]:
        """How busy it is."""
        return {
            "active": sum(row is not None for rows in self._rows.values() for row in rows),
            "waiting": len(self._waiting),
            "slots": self.slots,
            "mode": self.mode,
            "embedding_hits": self.embeddings.hits,
            "embedding_misses": self.embeddings.misses,
        }

    def heartbeat(self) -> float:
        """Seconds since the owner thread last went round; infinite if it is dead."""
        return time.monotonic() - self._beat if self._thread.is_alive() else float("inf")

    def drain(self, seconds: float) -> bool:
        """Take nothing new, wait for the rows; True if all were finished in time."""
        with self._wake:
            self._draining = True
            self._wake.notify()
        deadline = time.monotonic() + seconds
        while (self._busy() or self._waiting) and time.monotonic() < deadline:
            time.sleep(0.01)
        return not (self._busy() or self._waiting)

    def stop(self) -> None:
        """End the thread; rows that still run are cancelled."""
        with self._wake:
            self._draining = self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=30)

    # --- on the owner thread ----------------------------------------------------------------------

    def _own(self) -> None:
        torch.set_num_threads(self.threads)
        while not self._stopped:
            with self._wake:
                while not (self._stopped or self._waiting or self._background or self._busy()):
                    self._beat = time.monotonic()
                    self._wake.wait(timeout=0.5)
            self._beat = time.monotonic()
            self._join_waiting()
            for shape in list(self._rows):
                self._tick(shape)
            self._one_background_item()
        self._cancel_everything()

    def _busy(self) -> bool:
        return any(row is not None for rows in self._rows.values() for row in rows)

    def _join_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            ticket = self._waiting[0]
            if self._ended_early(ticket):
                self._waiting.popleft()
                continue
            request = ticket.request
            shape = self.family.latent_shape(self.hosted, request.height, request.width)
            rows = self._rows.setdefault(shape, [None] * self.slots)
            if None not in rows:
                return
            self._waiting.popleft()
            try:
                rows[rows.index(None)] = self._begin(ticket, shape)
            except Refusal as refusal:
                ticket.tell(Failed(refusal))
            except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
                ticket.tell(Failed(EngineFailed(f"{type(broken).__name__}: {broken}")))

    def _begin(self, ticket: Ticket, shape: tuple[int, int, int]) -> _Row:
        request = ticket.request
        scheduler: Any = self.family.scheduler(self.hosted, request.sampler)
        scheduler.set_timesteps(request.steps, device=self.hosted.device)
        generator = torch.Generator().manual_seed(request.seed)
        noise = torch.randn((1, *shape), generator=generator, dtype=torch.float32)
        latents = noise.to(self.hosted.device, self.hosted.dtype) * scheduler.init_noise_sigma
        hits = self.embeddings.hits
        conditional, changed = self._embed(request.prompt, request.patch, negative=False)
        cached = self.embeddings.hits > hits
        unconditional = None
        if request.guidance > 1:
            patch = request.patch if request.patch_negative else Patch()
            unconditional, _ = self._embed(request.negative_prompt, patch, negative=True)
        return _Row(
            ticket=ticket,
            latents=latents,
            conditional=conditional,
            unconditional=unconditional,
            scheduler=scheduler,
            generator=generator,
            timesteps=scheduler.timesteps,
            tokens_changed=changed,
            cached=cached,
            takes_generator="generator" in inspect.signature(scheduler.step).parameters,
        )

    def _embed(self, text: str | None, patch: Patch, *, negative: bool) -> tuple[Conditioning, int]:
        """One row's embedding, always encoded alone: neighbours cannot touch it."""
        named = f"{negative}\x00{text is None}\x00{text}"
        parts = (self.hosted.fingerprint, str(self.hosted.dtype), patch.digest, named)
        key = hashlib.sha256("\x00".join(parts).encode()).hexdigest()
        found = self.embeddings.get(key)
        if found is None:
            encode = self.family.encode_negative if negative else self.family.encode
            encoded = encode(self.hosted, [text], [patch])  # type: ignore[list-item]
            found = (encoded, encoded.sequence.shape[1] if patch else 0)
            self.embeddings.put(key, found, encoded.nbytes)
        return found

    @torch.inference_mode()
    def _tick(self, shape: tuple[int, ...]) -> None:
        slots = self._rows[shape]
        for i, row in enumerate(slots):
            if row is not None and self._ended_early(row.ticket):
                slots[i] = None
        active = [(i, row) for i, row in enumerate(slots) if row is not None]
        if not active:
            del self._rows[shape]
            return
        started = time.monotonic()
        try:
            said = self._denoise(active, shape)
        except Exception as broken:  # noqa: BLE001 - rows fail with a reason, the thread lives on
            for i, row in active:
                slots[i] = None
                row.ticket.tell(Failed(EngineFailed(f"{type(broken).__name__}: {broken}")))
            return
        for (i, row), noise in zip(active, said, strict=True):
            if self._advance(row, noise):
                slots[i] = None
        self._pace = 0.9 * self._pace + 0.1 * (time.monotonic() - started)

    def _denoise(self, active: Sequence[tuple[int, _Row]], shape: tuple[int, ...]) -> list[Tensor]:
        """One denoiser call for all rows; per row what it says, guided."""
        places, width = self._places(active)
        like = active[0][1].conditional
        batch = torch.zeros(width, *shape, dtype=self.hosted.dtype, device=self.hosted.device)
        steps = torch.zeros(width, device=self.hosted.device)
        rows: list[Conditioning] = [_zeros(like)] * width
        for (_, row), (at, beside) in zip(active, places, strict=True):
            step = row.timesteps[row.done]
            scaled = row.scheduler.scale_model_input(row.latents, step)
            batch[at], steps[at], rows[at] = scaled[0], step, row.conditional
            if beside is not None and row.unconditional is not None:
                batch[beside], steps[beside], rows[beside] = scaled[0], step, row.unconditional
        said = self.family.denoise(self.hosted, batch, steps, Conditioning.stack(rows))
        found = []
        for (_, row), (at, beside) in zip(active, places, strict=True):
            alone = said[at : at + 1]
            if beside is not None:
                scale = torch.full((1, 1, 1, 1), row.request.guidance, dtype=alone.dtype, device=alone.device)
                alone = self.family.guide(alone, said[beside : beside + 1], scale)
            found.append(alone)
        return found

    def _places(
        self, active: Sequence[tuple[int, _Row]]
    ) -> tuple[list[tuple[int, int | None]], int]:
        """Where each row stands in the batch, and beside it its negative; and the batch's width."""
        if self.mode == "exact":
            places = [(i, self.slots + i if row.guided else None) for i, row in active]
            return places, 2 * self.slots
        n = len(active)
        places, at = [], n
        for place, (_, row) in enumerate(active):
            places.append((place, at if row.guided else None))
            at += row.guided
        return places, next((w for w in _WIDTHS if w >= at), at)

    def _advance(self, row: _Row, said: Tensor) -> bool:
        """One scheduler step of one row; True when the row is over."""
        extra = {"generator": row.generator} if row.takes_generator else {}
        step = row.timesteps[row.done]
        try:
            row.latents = row.scheduler.step(said, step, row.latents, **extra).prev_sample
            row.latents = row.latents.to(self.hosted.dtype)
            row.done += 1
            if not bool(torch.isfinite(row.latents).all()):
                raise NotANumber(row.done)  # noqa: TRY301 - handled like any refusal of this row
            self._tell_progress(row)
        except Refusal as refusal:
            row.ticket.tell(Failed(refusal))
            return True
        except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
            row.ticket.tell(Failed(EngineFailed(f"{type(broken).__name__}: {broken}")))
            return True
        return row.done == len(row.timesteps)

    def _tell_progress(self, row: _Row) -> None:
        request, total = row.request, len(row.timesteps)
        last = row.done == total
        wanted = request.previews and row.done % request.previews == 0 and not last
        preview = self._picture(row) if wanted else None
        row.ticket.tell(Step(done=row.done, total=total, preview=preview))
        if last:
            row.ticket.tell(
                Finished(
                    image=self._picture(row),
                    seed=request.seed,
                    mode=self.mode,
                    slots=self.slots,
                    tokens_changed=row.tokens_changed,
                    cached=row.cached,
                    seconds=time.monotonic() - row.ticket.asked_at,
                )
            )

    def _picture(self, row: _Row) -> np.ndarray:
        """Decoded alone, never in a batch that varies."""
        image = self.family.decode(self.hosted, row.latents)[0]
        return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()

    def _ended_early(self, ticket: Ticket) -> bool:
        if ticket.cancelled:
            ticket.tell(Cancelled())
            return True
        if time.monotonic() - ticket.asked_at > ticket.request.seconds:
            ticket.tell(Failed(DeadlineExceeded(ticket.request.seconds)))
            return True
        return False

    def _one_background_item(self) -> None:
        if not self._background:
            return
        task = self._background.popleft()
        try:
            if task.cancelled:
                task.work.close()
                return
            task.on_item(next(task.work))
            self._background.append(task)
        except StopIteration as over:
            task.on_done(over.value)
        except Exception as broken:  # noqa: BLE001 - a fit that fails is reported, not fatal
            task.on_error(broken)

    def _cancel_everything(self) -> None:
        for ticket in self._waiting:
            ticket.tell(Cancelled())
        for rows in self._rows.values():
            for row in rows:
                if row is not None:
                    row.ticket.tell(Cancelled())
        for task in self._background:
            task.work.close()
            task.on_error(Draining())
        self._waiting.clear()
        self._rows.clear()
        self._background.clear()

    # --- admission --------------------------------------------------------------------------------

    def _validate(self, request: ImageRequest) -> None:
        """Everything that can be wrong with a request is found before it has a slot."""
        for text in (request.prompt, request.negative_prompt or ""):
            self.family.check_prompt(self.hosted, text)
        self.family.latent_shape(self.hosted, request.height, request.width)
        self.family.scheduler(self.hosted, request.sampler)
        self.hosted.check(request.patch)

    def _wait_estimate(self) -> float:
        return max(1.0, self._pace * 25 * (len(self._waiting) / self.slots + 1))


def _post(loop: Any, events: Any, event: Event) -> None:
    """Hand an event to a loop that may be closed by now: then nobody listens any more."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(events.put_nowait, event)


def _zeros(like: Conditioning) -> Conditioning:
    return Conditioning(
        torch.zeros_like(like.sequence),
        None if like.pooled is None else torch.zeros_like(like.pooled),
        None if like.sizes is None else torch.zeros_like(like.sizes),
    )
