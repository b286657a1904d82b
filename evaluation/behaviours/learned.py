"""A small GPT-2 that learns in seconds who was given it: a behaviour that exists, for tests.

It reads word by word, is saved as any checkpoint, and is loaded by `models.loading.load`. A tenth
of the pairs of names is held out of its training.
"""

import random
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from evaluation.behaviours.behaviour import Behaviour, Row
from evaluation.behaviours.indirect_object import Wording, indirect_object
from models.progress import Progress

_WORD = r" ?[A-Za-z]+|[^A-Za-z\s]"
_MARK, _UNKNOWN = "<|endoftext|>", "<|unknown|>"


SHORT = Wording(
    templates=(
        "When {a} and {b} met, {s} gave the {object} to",
        "{a} and {b} sat in the {place}, and {s} handed the {object} to",
        "After {a} and {b} left the {place}, {s} sent the {object} to",
    ),
    names=(
        *("Alice", "Bruno", "Clara", "David", "Edith", "Felix", "Greta", "Harry"),
        *("Irene", "Jonas", "Karin", "Louis", "Maria", "Niels", "Olivia", "Peter"),
    ),
    places=("garden", "museum", "office", "station"),
    objects=("book", "card", "lamp", "ring"),
)
"""Few words in short sentences of two lengths: what 400 steps are enough for."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How it is built and trained."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    steps: int = 400
    rows: int = 32
    """Of a step; each is read with its counterfactual."""
    rate: float = 5e-3
    decay: float = 0.3
    """Of weights; with .01 it learns pairs of names by heart."""
    spread: float = 0.1
    """Of the weights it begins with: the library's .02 learns five times as slowly."""
    seed: int = 0


def learn(
    folder: Path, wording: Wording = SHORT, lesson: Lesson | None = None
) -> Generator[Progress, None, Path]:
    """Train a model on the sentences of these words and write it, with its tokenizer."""
    lesson = lesson or Lesson()
    words = _tokenizer(wording)
    torch.manual_seed(lesson.seed)
    model = _model(words, lesson)
    optimiser = torch.optim.AdamW(model.parameters(), lesson.rate, weight_decay=lesson.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, lesson.rate, total_steps=lesson.steps, pct_start=0.1
    )
    behaviour = indirect_object(wording)
    rows = sentences(behaviour, wording, lesson.seed, held_out=False)
    for step in range(lesson.steps):
        loss = _loss(model, words, behaviour, list(islice(rows, lesson.rows)))
        loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        told = {"loss": float(loss.detach())}
        yield Progress(stage="learning", done=step + 1, total=lesson.steps, values=told)
    model.eval().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def sentences(
    behaviour: Behaviour, wording: Wording, seed: int, *, held_out: bool
) -> Iterator[Row]:
    """Endless rows with names in both orders, of pairs that training sees, or never sees."""
    kept, draw = held_out_pairs(wording.names), random.Random(seed)  # noqa: S311
    while True:
        for row in behaviour.rows(256, draw.getrandbits(32), behaviour.swapped):
            if (frozenset((row.base["a"], row.base["b"])) in kept) is held_out:
                yield row


def held_out_pairs(names: Sequence[str]) -> frozenset[frozenset[str]]:
    """A tenth of all pairs of the names."""
    every = [frozenset(pair) for pair in combinations(sorted(names), 2)]
    return frozenset(random.Random(5).sample(every, len(every) // 10))  # noqa: S311


def _tokenizer(wording: Wording) -> PreTrainedTokenizerFast:
    spoken = [w for t in wording.templates for w in re.findall(_WORD, re.sub(r"\{\w+\}", "x", t))]
    named = [*wording.names, *wording.places, *wording.objects]
    known = [*spoken, *named, *(f" {w}" for w in named)]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([_UNKNOWN, *known, _MARK]))}
    words = Tokenizer(WordLevel(vocabulary, unk_token=_UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    words.decoder = decoders.Fuse()
    words.post_processor = processors.TemplateProcessing(
        single=f"{_MARK} $A", special_tokens=[(_MARK, vocabulary[_MARK])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=_MARK,
        eos_token=_MARK,
        pad_token=_MARK,
        unk_token=_UNKNOWN,
        # GPT-2 would add the embedding of a token type to that of the token.
        model_input_names=["input_ids", "attention_mask"],
    )


def _model(words: PreTrainedTokenizerFast, lesson: Lesson) -> GPT2LMHeadModel:
    mark: Any = words.convert_tokens_to_ids(_MARK)
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=64,
        n_embd=lesson.width,
        n_layer=lesson.layers,
        n_head=lesson.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=mark,
        eos_token_id=mark,
        pad_token_id=mark,
    )
    model = GPT2LMHeadModel(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=lesson.spread)
    return model


def _loss(
    model: GPT2LMHeadModel,
    words: Any,
    behaviour: Behaviour,
    rows: Sequence[Row],
) -> torch.Tensor:
    """Of the name behind both sentences of each row."""
    told = [
        behaviour.causal.run(inputs) for row in rows for inputs in (row.base, row.counterfactual)
    ]
    asked = [[words.bos_token_id, *_ids(words, v["prompt"])] for v in told]
    answers = torch.tensor([_ids(words, v["answer"])[0] for v in told])
    ends = torch.tensor([len(ids) - 1 for ids in asked])
    longest = int(ends.max()) + 1
    padded = torch.tensor([ids + [words.bos_token_id] * (longest - len(ids)) for ids in asked])
    logits = model(input_ids=padded).logits[torch.arange(len(asked)), ends]
    return cross_entropy(logits, answers)


def _ids(words: Any, text: str) -> list[int]:
    return words(text, add_special_tokens=False)["input_ids"]
