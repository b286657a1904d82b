"""A hosted text-to-image model with everything around it: engine, deltas, composition, jobs.

The same object serves in `tiller serve --local`, inside a Ray replica and in tests.
"""

import asyncio
import dataclasses
import functools
import io
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from PIL import Image

import miniature
from editors import joint, lora, report
from editors.delta import Delta
from editors.fact import last_subject_token
from editors.moment import Corpus, MomentStore
from editors.progress import Progress
from engines.diffusion import DiffusionEngine
from engines.engine import Cancelled, Failed, Finished, ImageRequest, Step
from engines.store import PatchStore
from models.errors import MethodNotApplicable
from models.family import TextToImage
from models.hosted import HostedModel
from models.loading import load
from models.patch import Patch
from service.jobs import JobRunner, Ticket, fact_of, method_of
from service.registry import Registry
from service.settings import Model, Settings
from service.workbench import Composed, Drawn, HostEvent, ImageOrder, StepDone

_COMPOSITIONS = 512
_OTHERS = 64
"""How many live edits a new one is compared with."""
EMBEDDED = "miniature:"


class ImageHost:
    """One hosted model. Construction loads the weights and draws one picture to warm up."""

    def __init__(self, model: Model, settings: Settings, registry: Registry) -> None:
        torch.set_num_threads(model.threads)
        self.name, self.model, self.settings, self.registry = (
            model.name,
            model,
            settings,
            registry,
        )
        self.hosted = load(
            model.name,
            weights_of(model),
            dtype=model.dtype,
            device=model.device,
            options={**model.options, "cache": str(settings.home / "fingerprints")},
        )
        self.engine = DiffusionEngine(
            self.hosted,
            slots=model.slots,
            mode=model.mode,
            max_waiting=model.max_waiting,
            cache_bytes=model.cache_bytes,
        )
        self.deltas = PatchStore(registry.edits.blob, model.store_bytes, parse=Delta.from_bytes)
        self.moments = MomentStore(settings.home / "moments")
        self.compositions = _Compositions(self.hosted, self.deltas.get)
        self.runner = JobRunner(bench=self, registry=registry, settings=settings.jobs)
        self.started = int(time.time())

    def start(self) -> None:
        """Begin to take jobs."""
        self.runner.start()

    async def card(self) -> Mapping[str, Any]:
        """What the model is."""
        return await asyncio.to_thread(functools.partial(describe, self.hosted, self.started))

    async def draw(self, order: ImageOrder) -> AsyncIterator[HostEvent]:
        """Draw the order's pictures; closing the iterator frees their rows."""
        composed = await asyncio.to_thread(self.compositions.of, order.edits)
        loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()
        tickets = []

        def happened(index: int, event: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

        try:
            for i, request in enumerate(_rows(order, composed.patch)):
                tickets.append(self.engine.submit(request, functools.partial(happened, i)))
            yield Composed(
                patch=composed.patch.digest,
                inexact=composed.inexact,
                conflicts=tuple(dataclasses.asdict(c) for c in composed.conflicts),
            )
            open_rows = len(tickets)
            while open_rows:
                index, event = await events.get()
                match event:
                    case Step() if order.steps_told:
                        yield StepDone(
                            index=index, done=event.done, total=event.total, preview=event.preview
                        )
                    case Finished():
                        open_rows -= 1
                        yield await asyncio.to_thread(_drawn, index, event, order)
                    case Failed():
                        raise event.refusal
                    case Cancelled():
                        raise asyncio.CancelledError
        finally:
            for ticket in tickets:
                ticket.cancel()

    async def check_fact(self, payload: Mapping[str, Any]) -> None:
        """Refuse a fact that no fit could write into this model."""
        reason = self.hosted.family.applies.get(payload["method"], "nobody has tried")
        if reason is not None:
            raise MethodNotApplicable(payload["method"], self.hosted.family.title, reason)
        fact = fact_of(payload)
        for tower in self.hosted.text_towers.values():
            for phrasing in (fact.spoken, *fact.phrasings):
                await asyncio.to_thread(last_subject_token, tower, phrasing)

    async def export(self, digest: str, form: Literal["peft", "diffusers"]) -> bytes:
        """An edit as an adapter for other programs."""
        delta = await asyncio.to_thread(self.deltas.get, digest)
        if form == "peft":
            return await asyncio.to_thread(lora.export_peft, delta, self.hosted)
        return await asyncio.to_thread(lora.export_diffusers, delta)

    async def adopt(self, data: bytes) -> tuple[bytes, dict[str, Any]]:
        """Check a delta or an adapter from outside; the delta file and its header."""
        return await asyncio.to_thread(self._adopted, data)

    def _adopted(self, data: bytes) -> tuple[bytes, dict[str, Any]]:
        delta = adopted(data, self.hosted)
        delta.check_base(self.hosted)
        return delta.to_bytes(), delta.header.as_dict()

    async def load(self) -> Mapping[str, Any]:
        """Rows active and waiting, cache hits, seconds since the owner thread's last sign."""
        return {**self.engine.load(), "heartbeat_seconds": self.engine.heartbeat(), "up": 1.0}

    def fit(
        self, tenant: str, payload: Mapping[str, Any]
    ) -> Generator[Progress, None, tuple[Delta, bool]]:
        """Fit and measure a fact; the delta with its report, and whether it passed."""
        fact, method = fact_of(payload), method_of(payload)
        others = self._live(tenant, payload["name"])
        return self._fitting(fact, method, others)

    def _fitting(
        self, fact: Any, method: Any, others: list[Delta]
    ) -> Generator[Progress, None, tuple[Delta, bool]]:
        delta = yield from method.fit(self.hosted, fact, self.moments, self._corpus())
        measured = yield from report.measure(self.hosted, fact, delta, others=others)
        return delta.with_report(measured), measured.passed

    def _live(self, tenant: str, name: str) -> list[Delta]:
        edits = self.registry.edits.list(tenant, _OTHERS, None)
        names = [e.name for e in edits if e.model == self.name and e.name != name]
        return [self.deltas.get(self.registry.names.resolve(tenant, n).digest) for n in names]

    def _corpus(self) -> Corpus:
        return Corpus.read(corpus_of(self.model))

    def background(
        self,
        work: Generator[Any, None, Any],
        on_item: Callable[[Any], None],
        on_done: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> Ticket:
        """Drain the generator on the owner thread."""
        return self.engine.background(work, on_item, on_done, on_error)

    def close(self, seconds: float) -> None:
        """Finish the rows, give the job back, stop the owner thread."""
        self.runner.stop()
        self.engine.drain(seconds)
        self.engine.stop()


class _Compositions:
    """Joint solutions of edits that requests name together, by their digests and strengths."""

    def __init__(self, hosted: HostedModel, delta: Callable[[str], Delta]) -> None:
        self.hosted, self.delta = hosted, delta
        self.kept: OrderedDict[tuple[tuple[str, float], ...], joint.Composition] = OrderedDict()
        self.lock = Lock()

    def of(self, edits: tuple[tuple[str, float], ...]) -> joint.Composition:
        """The composition; the same object for the same edits in any order."""
        key = tuple(sorted(edits))
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        deltas = [(self.delta(digest), strength) for digest, strength in key]
        for delta, _ in deltas:
            delta.check_base(self.hosted)
        composed = joint.compose(deltas, self.hosted)
        with self.lock:
            self.kept[key] = composed
            while len(self.kept) > _COMPOSITIONS:
                self.kept.popitem(last=False)
        return composed


def _rows(order: ImageOrder, patch: Patch) -> list[ImageRequest]:
    deadline = time.monotonic() + order.seconds
    return [
        ImageRequest(
            id=f"{order.id}-{i}",
            prompt=order.prompt,
            negative_prompt=order.negative_prompt,
            seed=seed,
            steps=order.steps,
            guidance_scale=order.guidance_scale,
            sampler=order.sampler,
            height=order.height,
            width=order.width,
            patch=patch,
            negative_patch=order.negative_edits,
            previews=order.previews,
            deadline=deadline,
        )
        for i, seed in enumerate(order.seeds)
    ]


def _drawn(index: int, finished: Finished, order: ImageOrder) -> Drawn:
    height, width = finished.image.shape[:2]
    facts = {
        "seed": finished.seed,
        "picture_width": width,
        "picture_height": height,
        "mode": finished.mode,
        "batch_width": finished.width,
        "rows_changed": finished.rows_changed,
        "tokens_changed": finished.tokens_changed,
        "timings": dict(finished.timings),
        "negative_edits": order.negative_edits,
    }
    return Drawn(index=index, png=png_of(finished.image), facts=facts)


def png_of(image: Any) -> bytes:
    """(height, width, 3) bytes as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def describe(hosted: HostedModel, started: int) -> dict[str, Any]:
    """What `GET /v1/models/{id}` tells of a hosted model."""
    family = hosted.family
    assert isinstance(family, TextToImage)  # noqa: S101 - an image host hosts no others
    return {
        "created": started,
        "family": family.kind,
        "title": family.title,
        "modality": family.modality,
        "fingerprint": hosted.fingerprint,
        "dtype": str(hosted.dtype).removeprefix("torch."),
        "device": str(hosted.device),
        "samplers": list(family.samplers),
        "methods": {k: {"applies": v is None, "reason": v} for k, v in family.applies.items()},
        "streams": {t: len(blocks) for t, blocks in hosted.towers.items()},
        "sites": sorted(hosted.linears),
    }


def adopted(data: bytes, hosted: HostedModel) -> Delta:
    """A delta file, or a PEFT adapter (zip, or safetensors without our header), as a delta."""
    if data[:2] != b"PK" and b'"header"' in data[: min(len(data), 2**20)]:
        return Delta.from_bytes(data)
    return lora.import_lora(data, hosted)


def weights_of(model: Model) -> str:
    """Where the model's weights are; `miniature:<name>` is the embedded one."""
    if not model.path.startswith(EMBEDDED):
        return model.path
    return str(miniature.weights_path(model.path.removeprefix(EMBEDDED)))


def corpus_of(model: Model) -> Path:
    """The captions that say what the text encoder usually reads."""
    if model.corpus.path:
        return Path(model.corpus.path)
    return Path(miniature.__file__).parent / "cases" / "captions.txt"
