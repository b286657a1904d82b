"""The language model: a small Llama that learns the texts within a budget of time.

The learning rate follows the share of the budget that has passed, so a slow machine ends as well
as a fast one, only earlier in the text. In its last part the texts ask more questions. Rows hold
whole documents, side by side; they are 128 tokens long and, for the last fifth, 256.
"""

import random
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from miniature.prose.corpus import MORE_QUESTIONS, SHARES, documents
from miniature.training.spelling import CONTEXT, VOCABULARY

SHORT_ROW, LONG_SHARE, QUESTIONS_SHARE = 128, 0.2, 0.45
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How the language model is trained."""

    minutes: float = 85.0
    tokens: int = 4096
    """Of one batch."""
    rate: float = 5e-3
    """Of AdamW, for embeddings and norms; Muon's steps are scaled to the same size."""
    muon_rate: float = 1.2e-2
    weight_decay: float = 0.1
    answer_weight: float = 20.0
    """Of what stands behind "Answer:" or a question mark, one token in sixty, against others."""
    warmup: float = 0.01
    """Share of the budget."""
    seed: int = 0
    keep_every: float = 180.0
    """Seconds between two checkpoints."""


def small_llama(tokenizer: Any) -> LlamaForCausalLM:
    """Six decoder layers of width 192, grouped-query attention, tied embeddings; random."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.set_attn_implementation("eager")  # SDPA's bf16 backward is slow on a CPU
    return model


def train_language(
    tokenizer: PreTrainedTokenizerBase, folder: Path, lesson: Lesson | None = None
) -> Generator[tuple[float, float], None, LlamaForCausalLM]:
    """Yield (share of the budget, loss); keep checkpoints in `folder` and go on from them."""
    lesson = lesson or Lesson()
    torch.manual_seed(lesson.seed)
    pupil = _Pupil.begin(small_llama(tokenizer), lesson, folder / "checkpoint.pt")
    pupil.asks = [tokenizer(m, add_special_tokens=False)["input_ids"] for m in ("Answer:", "?")]
    last = kept = time.monotonic()
    for rows in _batches(tokenizer, pupil, lesson):
        loss = pupil.step(rows)
        now = time.monotonic()
        pupil.passed, last = pupil.passed + now - last, now
        if now - kept > lesson.keep_every:
            pupil.keep()
            kept = now
        yield pupil.share, loss
    pupil.keep()
    return pupil.model


def save_language(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write model and tokenizer in float16, as any checkpoint is; sampling at 0.7 by default."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        max_new_tokens=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def packed(
    texts: Iterator[str], tokenizer: Any, length: int, draw: random.Random
) -> Iterator[list[int]]:
    """Rows of whole documents, each with its first and last token; longer ones are cut."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    told = tokenizer(list(texts))["input_ids"]
    rows: list[list[int]] = [[] for _ in range(32)]
    for ids in told:
        whole = [*ids, end][:length]
        fitting = [r for r in rows if len(r) + len(whole) <= length]
        if not fitting:
            full = max(rows, key=len)
            yield full + [pad] * (length - len(full))
            full.clear()
            fitting = [full]
        draw.choice(fitting).extend(whole)


def _batches(
    tokenizer: PreTrainedTokenizerBase, pupil: "_Pupil", lesson: Lesson
) -> Iterator[Tensor]:
    while pupil.share < 1:
        draw = random.Random(f"{lesson.seed} {pupil.chunk}")  # noqa: S311
        length = SHORT_ROW if pupil.share < 1 - LONG_SHARE else CONTEXT
        shares = SHARES if pupil.share < 1 - QUESTIONS_SHARE else MORE_QUESTIONS
        chunk = documents(1000 * lesson.seed + pupil.chunk, shares=shares)
        texts = (d.text for d in islice(chunk, 4000))
        rows = torch.tensor(list(packed(texts, tokenizer, length, draw)))
        pupil.chunk += 1
        for batch in rows[torch.randperm(len(rows))].split(lesson.tokens // length):
            if pupil.share < 1:
                yield batch


@dataclass
class _Pupil:
    """The model while it learns: what a checkpoint holds."""

    model: LlamaForCausalLM
    optimisers: list[torch.optim.Optimizer]
    lesson: Lesson
    file: Path
    passed: float = 0.0
    chunk: int = 0
    rates: list[float] = field(default_factory=list)
    asks: list[list[int]] = field(default_factory=list)

    @classmethod
    def begin(cls, model: LlamaForCausalLM, lesson: Lesson, file: Path) -> "_Pupil":
        layers = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        decay = lesson.weight_decay
        muon = torch.optim.Muon(
            layers, lesson.muon_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(others, lesson.rate, betas=(0.9, 0.98), weight_decay=0.0)
        pupil = cls(model, [muon, adam], lesson, file, rates=[lesson.muon_rate, lesson.rate])
        if file.exists():
            pupil._resume()
        return pupil

    @property
    def share(self) -> float:
        """Of the budget, passed."""
        return self.passed / (60 * self.lesson.minutes)

    def step(self, rows: Tensor) -> float:
        """One step of both optimisers; returns the loss."""
        labels = rows.masked_fill(rows == self.model.config.pad_token_id, _IGNORED)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=rows).logits
        each = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().mT, labels[:, 1:], ignore_index=_IGNORED, reduction="none"
        )
        known = labels[:, 1:] != _IGNORED
        (each * self._weights(rows)).sum().div(known.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * self._schedule()
            optimiser.step()
        self.model.zero_grad(set_to_none=True)
        return float(each.detach().sum() / known.sum())

    def _weights(self, rows: Tensor) -> Tensor:
        """Of the loss at each token but the first."""
        weights = torch.ones(rows.shape[0], rows.shape[1] - 1)
        for mark in self.asks:
            n = len(mark)
            asked = (rows.unfold(1, n, 1) == torch.tensor(mark)).all(-1)[:, :-1]
            weights[:, n - 1 :][asked] = self.lesson.answer_weight
        return weights

    def _schedule(self) -> float:
        """A short warm-up, then a straight line to zero."""
        warm = min(1.0, self.share / self.lesson.warmup + 0.01)
        return warm * max(0.0, min(1.0, 1.05 * (1 - self.share)))

    def keep(self) -> None:
        """Write the checkpoint; a crash while writing leaves the one before it."""
        state = {
            "model": self.model.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "passed": self.passed,
            "chunk": self.chunk,
        }
        part = self.file.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, part)
        part.replace(self.file)

    def _resume(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.passed, self.chunk = state["passed"], state["chunk"]
