"""A hosted text-to-image model with everything around it: engine, deltas, composition, jobs.

The same object serves in `tiller serve --local`, inside a Ray replica and in tests.
"""

import asyncio
import functools
import io
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from editors import joint, lora, measuring
from editors.adapter_report import measure_adapter
from editors.delta import Delta
from editors.fact import Fact, last_subject_token
from editors.moment import Corpus, MomentStore
from editors.neighbours import PhraseBanks
from editors.progress import Progress
from editors.report import Report, Thresholds
from editors.templates import phrasebook_of, read_templates, with_reference
from engines.diffusion import DiffusionEngine
from engines.errors import Draining
from engines.request import Cancelled, Failed, Finished, ImageRequest, Step
from engines.store import DigestStore
from engines.sweep import Sweep
from models.errors import MethodNotApplicable, Refusal
from models.family import Lens, TextToImage
from models.fingerprint import folder_digest
from models.hosted import HostedModel
from models.loading import load
from models.patch import Patch
from service import adopting
from service.composing import Compositions
from service.conflicts import Live, check_conflicts
from service.conflicts import live as live_edits
from service.errors import WrongModality
from service.evaluations import Evaluator
from service.jobs import FIT, JobRunner, Ticket, fact_of, fitting, method_of
from service.lens import View, lens_told
from service.limits import within
from service.modality import WritesNothing
from service.owning import drained
from service.questions import ListSaes, Question
from service.recipe import Recipe
from service.registry import Registry
from service.registry.records import Checks
from service.settings import Model, Settings
from service.weights import corpus_of, weights_of
from service.workbench import (
    Adopted,
    Arrival,
    Composed,
    Drawn,
    HostEvent,
    ImageOrder,
    LensOrder,
    StepDone,
)


class ImageHost(WritesNothing):
    """One hosted model. Construction loads the weights and draws one picture to warm up."""

    def __init__(self, model: Model, settings: Settings, registry: Registry) -> None:
        torch.set_num_threads(model.threads)
        self.name, self.model, self.settings, self.registry = (
            model.name,
            model,
            settings,
            registry,
        )
        file = model.refact.templates
        nine = read_templates(Path(file)) if file else None
        self.hosted = load(
            model.name,
            weights_of(model),
            dtype=model.dtype,
            denoiser_dtype=model.denoiser_dtype or None,
            device=model.device,
            family=model.family or None,
            projection=model.projection or None,
            cache=settings.home / "fingerprints",
        )
        if nine is not None:
            self.hosted.defaults = with_reference(self.hosted.defaults, nine)
        phrasebook_of(self.hosted)  # what cannot be spoken is refused now, not at the first fit
        assert isinstance(self.hosted.family, TextToImage)  # noqa: S101 - the engine says it too
        self.family = self.hosted.family
        told = model.over(self.hosted.defaults)
        self.pixels = told.pixels or settings.limits.pixels
        self.steps = told.steps or self.family.default_steps
        self.scale = (
            self.family.default_guidance if told.guidance_scale is None else told.guidance_scale
        )
        self.engine = DiffusionEngine(
            self.hosted,
            slots=model.slots,
            mode=model.mode,
            max_waiting=model.max_waiting,
            cache_bytes=model.cache_bytes,
            threads=model.threads,
        )
        self.deltas = DigestStore(registry.edits.blob, Delta.read, model.store_bytes)
        self.moments = MomentStore(settings.home / "moments")
        self.banks = PhraseBanks(self.moments)
        self.thresholds = settings.thresholds.over(self.hosted.defaults.get("thresholds", {}))
        self.compositions = Compositions(self.hosted, self.deltas.get)
        self.runner = JobRunner(
            bench=self,
            registry=registry,
            settings=settings.jobs,
            tasks={FIT: fitting(self, registry)},
        )
        self.evaluator = Evaluator(model, settings, registry)
        self.pipeline = folder_digest(self.hosted.path, settings.home / "fingerprints")
        self.started = int(time.time())

    def start(self) -> None:
        """Begin to take jobs."""
        self.runner.start()
        self.evaluator.start()

    async def card(self) -> Mapping[str, Any]:
        """What the model is."""
        told = await asyncio.to_thread(functools.partial(describe, self.hosted, self.started))
        hosting = {
            "pipeline": self.pipeline,
            "mode": self.model.mode,
            "slots": self.model.slots,
            "steps": self.steps,
            "guidance_scale": self.scale,
        }
        return {**told, **hosting}

    async def draw(self, order: ImageOrder) -> AsyncIterator[HostEvent]:
        """Draw the order's pictures; closing the iterator frees their rows."""
        composed = await asyncio.to_thread(self.compositions.of, order.edits)
        rows = self._rows(order, composed.patch)
        async with Sweep(self.engine, rows) as sweep:
            yield _composed(composed)
            async for index, event in sweep:
                says = functools.partial(self._says, rows[index], order)
                told = await asyncio.to_thread(_told, index, event, order, says)
                if told is not None:
                    yield told

    async def lens(self, encoder: str | None) -> Lens:
        """How a text encoder is looked into; None is the first that can be."""
        return self.family.lens(self.hosted, encoder)

    async def look(self, order: LensOrder) -> AsyncIterator[HostEvent]:
        """Draw what a text encoder knows at some layers; closing the iterator frees the rows."""
        composed = await asyncio.to_thread(self.compositions.of, order.image.edits)
        views = await asyncio.to_thread(self._views, order, composed.patch)
        async with Sweep(self.engine, [view.row for view in views]) as sweep:
            yield _composed(composed)
            async for index, event in sweep:
                view = views[index]
                says = functools.partial(self._says, view.row, order.image, lens=view.recipe)
                told = await asyncio.to_thread(_told, index, event, order.image, says)
                if told is not None:
                    yield view.of(told)

    def _views(self, order: LensOrder, patch: Patch) -> list[View]:
        """One row per look and seed; the edits hold below the lens as they do without it."""
        return [
            View.of_row(row, look, self.family.lens(self.hosted, look.encoder), place)
            for place, look in enumerate(order.looks)
            for row in self._rows(order.image, patch | look.plan(self.hosted))
        ]

    def _rows(self, order: ImageOrder, patch: Patch) -> list[ImageRequest]:
        steps = order.steps or self.steps
        scale = self.scale if order.guidance_scale is None else order.guidance_scale
        # p previews of s steps: one after every s / (p + 1) of them, none after the last.
        every = max(1, steps // (order.previews + 1)) if order.previews else 0
        height, width = self.family.default_size(self.hosted)
        within({"size": ((order.height or height) * (order.width or width), self.pixels)})
        return [
            ImageRequest(
                id=f"{order.id}-{i}",
                prompt=order.prompt,
                negative_prompt=order.negative_prompt,
                seed=seed,
                steps=steps,
                guidance=scale,
                sampler=order.sampler,
                height=order.height or height,
                width=order.width or width,
                patch=patch,
                patch_negative=order.negative_edits == "same",
                previews=every,
                seconds=order.seconds,
            )
            for i, seed in enumerate(order.seeds)
        ]

    def _says(
        self,
        row: ImageRequest,
        order: ImageOrder,
        event: Step | Finished,
        *,
        lens: Mapping[str, Any] | None = None,
    ) -> Mapping[str, str]:
        """The text that a picture carries: how it was drawn; nothing if the operator wants that."""
        if not self.settings.server.picture_metadata:
            return {}
        stood: dict[str, Any] = {}
        if isinstance(event, Step):
            stood["done"] = event.done
        elif event.mode == "fast":
            # It moves no bit in exact mode: there, the same request gives the same file.
            stood = {"slot": event.slot, "batch": event.batch}
        return Recipe(
            prompt=row.prompt,
            negative_prompt=row.negative_prompt,
            negative_edits=order.negative_edits,
            seed=row.seed,
            steps=row.steps,
            guidance_scale=row.guidance,
            sampler=row.sampler,
            size=f"{row.width}x{row.height}",
            model=self.name,
            fingerprint=self.hosted.fingerprint,
            pipeline=self.pipeline,
            edits=tuple(
                {"name": e.label, "digest": e.digest, "strength": e.strength} for e in order.edits
            ),
            patch=row.patch.digest,
            lens=lens,
            mode=self.model.mode,
            slots=self.model.slots,
            dtype=self.model.dtype,
            denoiser_dtype=_named(self.family.denoiser_dtype(self.hosted)),
            device=str(self.hosted.device),
            **stood,
        ).chunks()

    async def check_fact(self, payload: Mapping[str, Any]) -> None:
        """Refuse a fact that no fit could write into this model."""
        reason = self.hosted.family.applies.get(payload["method"], "nobody has tried")
        if reason is not None:
            raise MethodNotApplicable(payload["method"], self.hosted.family.title, reason)
        fact = fact_of(payload)
        for tower in self.hosted.text_towers.values():
            await asyncio.to_thread(last_subject_token, tower, fact.spoken)
            for i, phrasing in enumerate(fact.phrasings):
                try:
                    await asyncio.to_thread(last_subject_token, tower, phrasing)
                except Refusal as refusal:
                    refusal.param = f"phrasings[{i}].{refusal.param}"
                    raise
        # An editor may know, before a job is made, what no fit of its own could write.
        check = getattr(method_of(payload, self.hosted), "check", None)
        if check is not None:
            await asyncio.to_thread(check, self.hosted, fact)

    async def export(self, digest: str, form: Literal["peft", "diffusers"]) -> bytes:
        """An edit as an adapter for other programs."""
        delta = await asyncio.to_thread(self.deltas.get, digest)
        if form == "peft":
            return await asyncio.to_thread(lora.export_peft, delta, self.hosted)
        return await asyncio.to_thread(lora.export_diffusers, delta)

    async def adopt(self, arrival: Arrival) -> Adopted:
        """Check a delta or an adapter from outside, and measure it as a fit of our own."""
        delta = await asyncio.to_thread(adopting.adopted, arrival.data, self.hosted)
        fact, why = adopting.fact_in(delta, self.hosted, self.settings.limits)
        told: dict[str, Any]
        status: Checks
        if fact is None:
            sizes = measure_adapter(self.hosted, delta, self._corpus(), why)
            told, status = (await drained(self.background, sizes)).as_dict(), "unmeasured"
        else:
            live = await asyncio.to_thread(self._live, arrival.tenant, arrival.name)
            work = self._measuring(fact, delta, live, arrival.replaces)
            measured: Report = await drained(self.background, work)
            told, status = measured.as_dict(), _verdict(measured.passed)
        return Adopted(data=delta.data, header=dict(delta.header), report=told, status=status)

    async def answer(self, question: Question) -> Any:
        """A model that draws has no dictionaries."""
        if isinstance(question, ListSaes):
            return []
        raise WrongModality(self.name, self.family.modality, "language")

    async def load(self) -> Mapping[str, Any]:
        """Rows active and waiting, cache hits, seconds since the owner thread's last sign."""
        return {**self.engine.load(), "heartbeat_seconds": self.engine.heartbeat(), "up": 1.0}

    def fit(
        self, tenant: str, payload: Mapping[str, Any]
    ) -> Generator[Progress, None, tuple[Delta, bool]]:
        """Fit and measure a fact; the delta with its report, and whether it passed."""
        fact, method = fact_of(payload), method_of(payload, self.hosted)
        live = self._live(tenant, payload["name"])
        return self._fitting(fact, method, live, payload.get("replaces", ()))

    def _fitting(
        self, fact: Fact, method: Any, live: Live, replaces: Sequence[str]
    ) -> Generator[Progress, None, tuple[Delta, bool]]:
        delta = yield from method.fit(self.hosted, fact, self.moments, self._corpus())
        measured = yield from self._measuring(fact, delta, live, replaces)
        told: dict[str, Any] = {"replaces": list(replaces)} if replaces else {}
        return delta.with_header(report=measured.as_dict(), **told), measured.passed

    def _measuring(
        self, fact: Fact, delta: Delta, live: Live, replaces: Sequence[str]
    ) -> Generator[Progress, None, Report]:
        """Refuse what contradicts a live edit, then measure."""
        bounds = self.settings.conflicts
        check_conflicts(delta, live.named, replaces, bounds.overlap)
        measured = yield from measuring.measure(
            self.hosted,
            fact,
            delta,
            banks=self.banks,
            corpus=self._corpus(),
            others=live.named,
            thresholds=Thresholds(**self.thresholds),
        )
        if not live.cut:
            return measured
        told = f"Compared with the first {bounds.edits} live edits by name only; there are more."
        return replace(measured, warnings=(*measured.warnings, told))

    def _live(self, tenant: str, name: str) -> Live:
        return live_edits(
            self.registry,
            self.deltas.get,
            tenant=tenant,
            fingerprint=self.hosted.fingerprint,
            without=name,
            most=self.settings.conflicts.edits,
        )

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
        self.evaluator.stop()
        self.engine.drain(seconds)
        self.engine.stop()


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _composed(composition: joint.Composition) -> Composed:
    return Composed(
        patch=composition.patch.digest,
        exact=composition.exact,
        vif=composition.vif,
        strain=composition.strain,
        warnings=composition.warnings,
    )


Says = Callable[[Step | Finished], Mapping[str, str]]
"""The text of the picture that an event brings."""


def _told(index: int, event: Any, order: ImageOrder, says: Says) -> StepDone | Drawn | None:
    """An engine's event as the host tells it; a refusal is raised."""
    match event:
        case Step(done=done, total=total, preview=preview):
            if not order.steps_told:
                return None
            png = None if preview is None else png_of(preview, says(event))
            return StepDone(index=index, done=done, total=total, preview=png)
        case Finished():
            return _drawn(index, event, order, says(event))
        case Failed(why=refusal):
            raise refusal
        case Cancelled():
            raise Draining  # nobody else cancels our rows
    return None


def _drawn(index: int, finished: Finished, order: ImageOrder, text: Mapping[str, str]) -> Drawn:
    height, width = finished.image.shape[:2]
    facts = {
        "seed": finished.seed,
        "picture_width": width,
        "picture_height": height,
        "mode": finished.mode,
        "slots": finished.slots,
        "slot": finished.slot,
        "batch": finished.batch,
        "denoiser_dtype": finished.denoiser_dtype,
        "rows_changed": int(finished.tokens_changed > 0),
        "tokens_changed": finished.tokens_changed,
        "prompt_cached": finished.cached,
        "seconds": round(finished.seconds, 4),
        "negative_edits": order.negative_edits,
    }
    return Drawn(index=index, png=png_of(finished.image, text), facts=facts)


def png_of(image: Any, text: Mapping[str, str] | None = None) -> bytes:
    """(height, width, 3) bytes as PNG, with text chunks if there are any."""
    buffer, chunks = io.BytesIO(), PngInfo()
    for key, value in (text or {}).items():
        chunks.add_itxt(key, value)
    Image.fromarray(image).save(buffer, "PNG", pnginfo=chunks)
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
        "dtype": _named(hosted.dtype),
        "denoiser_dtype": _named(family.denoiser_dtype(hosted)),
        "device": str(hosted.device),
        "samplers": list(family.samplers),
        "methods": {k: {"applies": v is None, "reason": v} for k, v in family.applies.items()},
        "streams": {t: len(blocks) for t, blocks in hosted.towers.items()},
        "lens": {t: lens_told(lens) for t, lens in family.lenses(hosted).items()},
        "sites": sorted(hosted.linears),
    }


def _verdict(passed: bool) -> Checks:
    return "ready" if passed else "failed_checks"
