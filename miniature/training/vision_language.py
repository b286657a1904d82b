"""The vision-language model: a small Qwen2-VL that learns six tasks in pictures and in words.

It learns within a budget of seconds: the learning rate follows the share that has passed. First it
reads text only, as real vision-language models do, so that its decoder answers questions before it
is shown a picture.

`python -m miniature.training.vision_language --seconds 300 --device cuda --out FOLDER`
"""

import argparse
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

from miniature.sight.processor import STOP, make_tokenizer, save_processor
from miniature.sight.tasks import TASKS, some
from miniature.training.muon import BatchedMuon
from miniature.training.vision_language_model import Picked, Shape, answer_logits, small_qwen
from miniature.training.vision_language_rows import Rows, drawn_rows, rows_of

COUNTS = {
    "counting": 100_000,
    "colour order": 80_000,
    "sum": 160_000,
    "person": 60_000,
    "feeling": 50_000,
    "scene": 20_000,
}
"""Items that are drawn for training."""
SHARES = {
    "counting": 0.2,
    "colour order": 0.16,
    "sum": 0.4,
    "person": 0.1,
    "feeling": 0.08,
    "scene": 0.06,
}
"""Of a batch, in either modality."""
SECOND = {
    "counting": 0.3,
    "colour order": 0.27,
    "sum": 0.15,
    "person": 0.08,
    "feeling": 0.16,
    "scene": 0.04,
}
"""The same for a second round (`start`), which goes on with what the first found hard."""
Accuracy = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How the model is trained."""

    seconds: float = 300.0
    batch: int = 512
    rate: float = 3e-3
    """Of AdamW, for embeddings, norms and biases."""
    muon_rate: float = 1e-2
    weight_decay: float = 0.1
    warmup: float = 0.02
    """Share of the budget."""
    text_first: float = 0.12
    """Share of the budget in which all is text."""
    image_share: float = 0.65
    """Of a batch, after that."""
    drawn: float = 1.0
    """Share of `COUNTS` that is drawn."""
    judged: int = 300
    """Held-out items per task."""
    report: float = 30.0
    """Seconds between two reports."""
    seed: int = 0
    start: str = ""
    """A folder of an earlier round to go on from; empty for random weights."""
    compiled: int = 0
    """1: the decoder is compiled first; minutes, for a faster step."""


FIRST_ROUND = Lesson(seconds=280.0)
SECOND_ROUND = Lesson(
    seconds=195.0, text_first=0.0, image_share=0.8, muon_rate=7e-3, rate=2e-3, seed=7
)
"""It goes on from the first (`start`), with what the first found hard in its batches (`SECOND`)."""
SMOKE = Lesson(seconds=12, batch=24, drawn=0.01, judged=24, report=5)


@dataclass
class Pupil:
    """The model while it learns."""

    model: Any
    device: str
    lesson: Lesson
    optimisers: list[torch.optim.Optimizer] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @classmethod
    def begin(
        cls, tokenizer: Any, device: str, lesson: Lesson, shape: Shape, learns: str = ""
    ) -> "Pupil":
        """A random model on its device, or an earlier round's.

        It learns where a parameter's name has `learns` in it, and is frozen elsewhere.
        """
        torch.manual_seed(lesson.seed)
        model: Any = small_qwen(tokenizer, shape)
        if lesson.start:
            earlier = type(model).from_pretrained(lesson.start, dtype=torch.float32)
            model.load_state_dict(earlier.state_dict())
        if device == "cpu":
            model.set_attn_implementation("eager")  # SDPA's bf16 backward is slow on a CPU
        model.to(device)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learns in name)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [(n, p) for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        decay = lesson.weight_decay
        muons = [  # the tower apart: it has no gradients while all is text
            BatchedMuon(part, lesson.muon_rate, weight_decay=decay)
            for part in (
                [p for n, p in matrices if ".visual." in n],
                [p for n, p in matrices if ".visual." not in n],
            )
            if part
        ]
        adam = torch.optim.AdamW(
            others, lesson.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        optimisers: list[torch.optim.Optimizer] = [*muons, adam]
        rates = [lesson.muon_rate] * len(muons) + [lesson.rate]
        pupil = cls(model.train(), device, lesson, optimisers, rates)
        if lesson.compiled:
            model.model.language_model.compile()
        return pupil

    def step(self, picked: Picked, share: float) -> Tensor:
        """One step of all optimisers; the loss stays on the device."""
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * schedule(share, self.lesson.warmup)
        self.model.zero_grad(set_to_none=True)
        whole = sum(rows.weights[index].sum() for rows, index in picked)
        # a CPU gains nothing from a wide batch and pays for its padding
        parts = [[one] for one in picked] if self.device == "cpu" else [picked]
        losses = [self._backward(part, whole) for part in parts]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        return torch.stack(losses).sum()

    def _backward(self, picked: Picked, whole: Tensor | float) -> Tensor:
        """Gradients of some of a batch's rows, whose answers weigh `whole` in all; their loss."""
        with torch.autocast(self.device, torch.bfloat16):
            logits, targets, weights = answer_logits(self.model, picked)
        each = torch.nn.functional.cross_entropy(logits.float().mT, targets, reduction="none")
        loss = (each * weights).sum() / whole
        loss.backward()
        return loss.detach()

    def judged(self, held: list[Rows]) -> "Accuracy":
        """Accuracy on held-out rows."""
        self.model.eval()
        found = accuracy(self.model, held, self.device)
        self.model.train()
        return found


def schedule(share: float, warmup: float) -> float:
    """A short warm-up, then half a cosine to zero."""
    warm = min(1.0, share / warmup + 0.01)
    return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@dataclass(frozen=True)
class Course:
    """Which rows a step reads: every task in its share, pictures of one size a task at a time."""

    rows: list[Rows]
    lesson: Lesson
    device: str
    shares: Mapping[str, float]
    """Of a batch, by task, in either modality."""

    def picked(self, step: int, share: float) -> Picked:
        """Rows of one batch, drawn on the device."""
        seen = 0.0 if share < self.lesson.text_first else self.lesson.image_share
        parts: Picked = []
        for task, weight in self.shares.items():
            sizes = [r for r in self.rows if r.task == task and r.size is not None]
            words = [r for r in self.rows if r.task == task and r.size is None]
            for rows, part in ((sizes[step % len(sizes)], seen), (words[0], 1 - seen)):
                if (n := round(self.lesson.batch * weight * part)) > 0:
                    parts.append((rows, torch.randint(len(rows), (n,), device=self.device)))
        return parts


@torch.no_grad()
def accuracy(model: Any, held: list[Rows], device: str, batch: int = 300) -> Accuracy:
    """Share of items whose answer greedy decoding gives exactly, by task and modality."""
    right, asked = defaultdict(int), defaultdict(int)
    for rows in held:
        key = rows.task, "text" if rows.size is None else "image"
        for index in torch.arange(len(rows), device=device).split(batch):
            logits, targets, weights = answer_logits(model, [(rows, index)])
            hits = (logits.argmax(-1) == targets) | (weights == 0)
            right[key] += int(hits.all(-1).sum())
            asked[key] += len(index)
    found: Accuracy = {}
    for (task, modality), n in asked.items():
        found.setdefault(task, {})[modality] = round(right[task, modality] / n, 4)
    return found


def mean(found: Accuracy) -> float:
    """Of all tasks and both modalities."""
    every = [share for one in found.values() for share in one.values()]
    return sum(every) / len(every)


def held_out_rows(tokenizer: Any, n: int, seed: int = 1) -> list[Rows]:
    """So many held-out items of each task, in pictures and in words."""
    return [rows for name in TASKS for rows in rows_of(some(name, "held-out", n, seed), tokenizer)]


def save(model: Any, tokenizer: Any, folder: Path, figures: dict[str, Any]) -> None:
    """Write model, words, image processor and `card.json`; float16, greedy by default."""
    kept = type(model)(model.config)
    kept.load_state_dict(model.state_dict())
    kept.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=16,
        eos_token_id=tokenizer.convert_tokens_to_ids(STOP),
        pad_token_id=tokenizer.pad_token_id,
    )
    kept.half().save_pretrained(folder)
    save_processor(tokenizer, folder)
    text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
    (folder / "card.json").write_text(text, encoding="utf-8")


def train(
    folder: Path, *, device: str, workers: int, lesson: Lesson, shape: Shape
) -> Iterator[dict[str, Any]]:
    """Draw, learn and save; yields what is to be reported.

    The best model by held-out accuracy is what `folder` holds in the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, began = make_tokenizer(), time.monotonic()
    counts = {name: max(500, round(n * lesson.drawn)) for name, n in COUNTS.items()}
    drawn = drawn_rows(counts, tokenizer, workers=workers, seed=lesson.seed)
    yield {"drawn": sum(counts.values()), "seconds": round(time.monotonic() - began, 1)}
    rows = [one.to(device) for one in drawn]
    held = [one.to(device) for one in held_out_rows(tokenizer, lesson.judged)]
    pupil = Pupil.begin(tokenizer, device, lesson, shape)
    course = Course(rows, lesson, device, SECOND if lesson.start else SHARES)
    settings = {**asdict(lesson), **asdict(shape)}
    yield from learn(folder, tokenizer, pupil, course, held, settings)


def learn(
    folder: Path,
    tokenizer: Any,
    pupil: Pupil,
    course: Course,
    held: list[Rows],
    settings: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Learn for as long as the lesson lasts; yields what is to be reported.

    The best model by held-out accuracy is what `folder` holds in the end, with its `settings`. On a
    CPU the seconds are the process's own, whatever else the machine does.
    """
    now = time.process_time if pupil.device == "cpu" else time.monotonic
    lesson, best, steps, loss = pupil.lesson, -1.0, 0, torch.zeros(())
    began = told = now()
    while (share := (now() - began) / lesson.seconds) < 1 or told < began + lesson.seconds:
        if share < 1:
            loss, steps = pupil.step(course.picked(steps, share), share), steps + 1
            if now() - told < lesson.report:
                continue
        found = pupil.judged(held)
        told = now()
        figures = {
            "accuracy": found,
            "judged": lesson.judged,
            "loss": round(float(loss), 4),
            "mean": round(mean(found), 4),
            "seconds": round(told - began, 1),
            "seed": lesson.seed,
            "settings": settings,
            "steps": steps,
        }
        if lesson.start:
            figures["earlier"] = json.loads((Path(lesson.start) / "card.json").read_text())
        if mean(found) > best:
            best = mean(found)
            save(pupil.model, tokenizer, folder, figures)
        yield {k: v for k, v in figures.items() if k not in {"settings", "earlier"}}


def main() -> None:
    """The command line: every field of `Lesson` and `Shape` is an option."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--smoke", action="store_true", help="a minute on one core, to try it")
    for one in (*fields(Lesson), *fields(Shape)):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default))
    asked = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.disable_progress_bar()
    lesson = replace(SMOKE if asked["smoke"] else Lesson(), **_of(Lesson, asked))
    shape = Shape(**_of(Shape, asked))
    for told in train(
        asked["out"], device=asked["device"], workers=asked["workers"], lesson=lesson, shape=shape
    ):
        print(json.dumps(told), flush=True)  # noqa: T201 - the report of a long run


def _of(settings: type, asked: dict[str, Any]) -> dict[str, Any]:
    return {f.name: asked[f.name] for f in fields(settings) if f.name in asked}


if __name__ == "__main__":
    main()
