"""A hosted language model with everything around it: engine, edits, dictionaries, steering, jobs.

The same object serves in `tiller serve --local`, inside a Ray replica and in tests.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Literal

import torch

from editors import lora
from editors.adapter_report_language import measure_language_adapter
from editors.delta import Delta
from editors.joint import Composition
from editors.moment import Corpus
from engines.errors import ContextTooLong
from engines.slots.admission import check
from engines.slots.choosing import engine_for
from engines.slots.request import LAST, Event, Generation
from engines.store import DigestStore
from models.decoder import TOWER
from models.errors import MethodNotApplicable
from models.language import Language
from models.loading import load
from models.patch import Patch
from models.sight import Sight
from service import adopting
from service.backpatching import in_prompt
from service.calibrating import Calibrations
from service.composing import Compositions
from service.dictionaries import Dictionaries
from service.evaluations import Evaluator
from service.evidence import Gatekeeper
from service.feature_jobs import FeatureJobs
from service.jobs import JobRunner, Task, Ticket
from service.language_rows import Telling, lines_of
from service.modality import DrawsNothing
from service.orders import Prepared, TextEvent, TextOrder
from service.owning import drained
from service.patience import Desk, Patience
from service.pictures_in import looked
from service.questions import Question
from service.registry import Registry
from service.registry.grammar import PUBLIC
from service.registry.records import FeatureLabel
from service.settings import Model, Settings
from service.steering import Steered, Steering, reports_of
from service.studying import Study
from service.texts import Texts
from service.vectors import LEARN, NO_STREAM, learning
from service.weights import corpus_of, dictionaries_of, labels_of, weights_of
from service.workbench import Adopted, Arrival
from steerers.dictionary import Dictionary
from steerers.planned import Bounds
from steerers.score import REFERENCE

PLANNERS = 4
"""Threads that plan steering, and as many that answer questions: they wait more than they work."""


class LanguageHost(DrawsNothing):
    """One hosted language model. Construction loads the weights and writes a token to warm up."""

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
            family=model.family or None,
            cache=settings.home / "fingerprints",
        )
        assert isinstance(self.hosted.family, Language)  # noqa: S101 - `host_of` looked
        self.family = self.hosted.family
        known = dictionaries_of(model)
        for dictionary in known:
            dictionary.check(self.hosted)
        self._label(known, labels_of(model))
        self.engine = engine_for(
            self.hosted,
            slots=model.slots,
            capacity=model.capacity,
            budget=model.prefill_tokens,
            cache_bytes=model.prefix_bytes,
            max_waiting=model.max_waiting,
            sight_bytes=model.sight_bytes,
            threads=model.threads,
        )
        self.deltas = DigestStore(registry.edits.blob, Delta.read, model.store_bytes)
        self.compositions = Compositions(self.hosted, self.deltas.get)
        self.dictionaries = Dictionaries(
            self.hosted,
            known,
            registry=registry,
            background=self.background,
            folder=settings.home / "lenses",
        )
        jobs = FeatureJobs(
            dictionaries=self.dictionaries, registry=registry, corpus=self._own_texts
        )
        bounds = Bounds(ratio=settings.limits.steering_ratio)
        self.gatekeeper = Gatekeeper(
            registry=registry,
            model=model.name,
            fingerprint=self.hosted.fingerprint,
            floor=model.evidence,
        )
        self.steering = Steering(
            self.dictionaries, registry, model.store_bytes, bounds, self.gatekeeper.permits
        )
        self.study = Study(self.dictionaries, registry, self.steering)
        self.desk = Desk(f"plan-{self.name}", PLANNERS, self.engine.max_waiting)
        self.questions = Desk(f"study-{self.name}", PLANNERS, self.engine.max_waiting)
        tasks: dict[str, Task] = {
            **jobs.tasks,
            LEARN: learning(self.hosted, registry),
            **Calibrations(self.hosted, registry).tasks,
        }
        self.runner = JobRunner(bench=self, registry=registry, settings=settings.jobs, tasks=tasks)
        self.evaluator = Evaluator(model, settings, registry)
        self.started = int(time.time())
        self._warm_up()

    def _label(
        self, known: Sequence[Dictionary], labels: Mapping[str, Sequence[FeatureLabel]]
    ) -> None:
        """Labels that lie beside a dictionary's files are everybody's."""
        for dictionary in known:
            told, kept = labels.get(dictionary.id, ()), self.registry.labels
            there = kept.of(PUBLIC, dictionary.digest, [one.feature for one in told])
            fresh = [one for one in told if one not in there.get(one.feature, ())]
            if fresh:
                kept.put(PUBLIC, dictionary.digest, fresh, actor="host")

    def _warm_up(self) -> None:
        """Write a token, so that ready means ready."""
        over = threading.Event()

        def tell(event: Event) -> None:
            if isinstance(event, LAST):
                over.set()

        ids = tuple(self.family.tokenize(self.hosted, REFERENCE.prompt))
        self.engine.submit(Generation(id="warm-up", ids=ids, max_tokens=1), tell)
        over.wait()

    def start(self) -> None:
        """Begin to take jobs."""
        self.runner.start()
        self.evaluator.start()

    async def card(self) -> Mapping[str, Any]:
        """What the model is."""
        return await asyncio.to_thread(self._card)

    def _card(self) -> dict[str, Any]:
        hosted, family = self.hosted, self.family
        return {
            "created": self.started,
            "family": family.kind,
            "title": family.title,
            "modality": family.modality,
            "fingerprint": hosted.fingerprint,
            "dtype": str(hosted.dtype).removeprefix("torch."),
            "device": str(hosted.device),
            "methods": {k: {"applies": v is None, "reason": v} for k, v in self._applies.items()},
            "streams": {tower: len(blocks) for tower, blocks in hosted.towers.items()},
            "width": family.stream_width(hosted, TOWER) if hosted.towers else None,
            "heads": getattr(
                hosted.modules["lm"].config.get_text_config(), "num_attention_heads", None
            ),
            "sites": sorted(hosted.linears),
            "vocabulary": family.vocab_size(hosted),
            "context": family.context_length(hosted),
            "engine": self.engine.kind,
            "slots": self.engine.slots,
            "capacity": self.engine.capacity,
            "saes": [d.id for d in self.dictionaries.known.values()],
        }

    @property
    def _applies(self) -> Mapping[str, str | None]:
        """As the family says; but no direction is added to a model without a stream."""
        missing = {} if self.hosted.towers else {"control_vector": NO_STREAM}
        return {**self.family.applies, **missing}

    async def write(self, order: TextOrder) -> AsyncIterator[TextEvent]:
        """Write the order's texts; closing the iterator frees their rows."""
        patience = Patience(order.seconds)
        composed = await asyncio.to_thread(self.compositions.of, order.edits)
        prompts, sight = await self._read(order, patience)
        steered, unverified = [Steered()] * len(prompts), tuple[dict[str, Any], ...]()
        if order.steering:
            steered = await self.desk.run(
                lambda its: [self._planned(order, ids, sight, its) for ids in prompts],
                patience.remaining,
            )
            chosen = [report for plan in steered for report in plan.reports]
            unverified = await asyncio.to_thread(
                self.gatekeeper.check, order.tenant, chosen, unverified=order.unverified
            )
        patches = [composed.patch | plan.patch for plan in steered]
        patience.check()  # what planning took is not there for writing
        order = replace(order, seconds=patience.remaining or 0.0)
        sights = [sight] * len(prompts)
        lines = lines_of(order, prompts, patches, self.engine.capacity, sights)
        telling = Telling(order, lines)
        requests = [line.request for line in lines]
        tokens = order.streamed or order.logprobs is not None
        async with Texts(self.engine, requests, tokens=tokens) as texts:
            prepared = self._prepared(order, composed, prompts, patches, steered)
            yield replace(prepared, unverified=unverified)
            async for bundle in texts.bundles():
                for happened in telling.of(bundle):
                    yield happened

    async def _read(
        self, order: TextOrder, patience: Patience
    ) -> tuple[list[list[int]], Sight | None]:
        """What the rows read. Pictures are decoded at the desk, so that few are at a time."""
        if not order.pictures:
            return await asyncio.to_thread(self._prompts, order)
        return await self.desk.run(lambda _: self._prompts(order), patience.remaining)

    def _prompts(self, order: TextOrder) -> tuple[list[list[int]], Sight | None]:
        """What the rows read, as token ids that the engine takes: looked at before anything runs.

        Raises:
            BadGeneration, ContextTooLong: The engine does not take them.
            NotAnImage, BadPicture: A picture that does not decode, or that the model's processor
                refuses.
        """
        sight = None
        if order.messages is not None:
            ids, sight = looked(self.hosted, order.messages, order.pictures)
            prompts = [ids]
        else:
            prompts = [
                self.family.tokenize(self.hosted, p) if isinstance(p, str) else list(p)
                for p in order.prompts
            ]
        capacity, plain = self.engine.capacity, replace(order, compare=False)
        patches, sights = [Patch()] * len(prompts), [sight] * len(prompts)
        try:
            for line in lines_of(plain, prompts, patches, capacity, sights):
                check(line.request, vocab=self.family.vocab_size(self.hosted), capacity=capacity)
        except ContextTooLong as refusal:
            refusal.param = "prompt" if order.messages is None else "messages"
            raise
        return prompts, sight

    def _planned(
        self, order: TextOrder, ids: Sequence[int], sight: Sight | None, patience: Patience
    ) -> Steered:
        """What the order's steering means for a row that reads these tokens and pictures."""
        steered = self.steering.plan(order, ids, patience, sight)
        layers = len(self.hosted.towers.get(TOWER, ()))
        return in_prompt(steered, order.steering, len(ids), sight, layers)

    def _said(self, order: TextOrder, ids: Sequence[int]) -> str:
        """A prompt as text; a conversation's is not repeated, and may have no words for a token."""
        return "" if order.messages is not None else self.family.detokenize(self.hosted, ids)

    def _prepared(
        self,
        order: TextOrder,
        composed: Composition,
        prompts: Sequence[Sequence[int]],
        patches: Sequence[Patch],
        plans: Sequence[Steered],
    ) -> Prepared:
        # What depends on the prompt differs from one to the next; the digest names them all.
        digests = sorted({patch.digest for patch in patches})
        return Prepared(
            patch=digests[0]
            if len(digests) == 1
            else sha256("\n".join(digests).encode()).hexdigest(),
            exact=composed.exact,
            vif=composed.vif,
            strain=composed.strain,
            warnings=(*composed.warnings, *dict.fromkeys(w for p in plans for w in p.warnings)),
            steering=reports_of([plan.steering for plan in plans]),
            whole=reports_of([plan.whole for plan in plans]),
            backpatch=reports_of([plan.backpatch for plan in plans]),
            prompts=tuple(self._said(order, ids) for ids in prompts),
            prompt_tokens=tuple(len(ids) for ids in prompts),
            engine={
                "kind": self.engine.kind,
                "slots": self.engine.slots,
                "capacity": self.engine.capacity,
                "dtype": str(self.hosted.dtype).removeprefix("torch."),
            },
        )

    async def check_fact(self, payload: Mapping[str, Any]) -> None:
        """Refuse: no editor writes facts into a language model."""
        reason = self.family.applies.get(payload["method"], "nobody has tried")
        raise MethodNotApplicable(
            payload["method"], self.family.title, reason or "nobody has tried"
        )

    async def export(self, digest: str, form: Literal["peft", "diffusers"]) -> bytes:
        """An edit as an adapter for other programs."""
        if form == "diffusers":
            raise MethodNotApplicable("diffusers", self.family.title, "it is no pipeline.")
        delta = await asyncio.to_thread(self.deltas.get, digest)
        return await asyncio.to_thread(lora.export_peft, delta, self.hosted)

    async def adopt(self, arrival: Arrival) -> Adopted:
        """Check a delta or an adapter from outside, and measure how large its change is."""
        delta = await asyncio.to_thread(adopting.adopted, arrival.data, self.hosted)
        corpus = Corpus.read(corpus_of(self.model))
        sizes = await drained(self.background, measure_language_adapter(self.hosted, delta, corpus))
        return Adopted(
            data=delta.data, header=dict(delta.header), report=sizes.as_dict(), status="unmeasured"
        )

    async def answer(self, question: Question) -> Any:
        """What is asked about its dictionaries and vectors."""
        seconds = self.settings.server.request_seconds
        return await self.questions.run(lambda its: self.study.answer(question, its), seconds)

    def _own_texts(self) -> Sequence[str]:
        return Corpus.read(corpus_of(self.model)).texts

    async def load(self) -> Mapping[str, Any]:
        """Rows active and waiting, cache hits, seconds since the owner thread's last sign."""
        return {**self.engine.load(), "heartbeat_seconds": self.engine.heartbeat(), "up": 1.0}

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
        self.desk.close()
        self.questions.close()
        self.engine.drain(seconds)
        self.engine.stop()
