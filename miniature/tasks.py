"""Three tasks that the miniature's language model was never shown the questions of.

Every question is a prompt whose answer is one short completion. The numbers, pairs of names and
coloured objects asked about are held out from the training texts (`miniature.prose`).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from miniature.prose import arithmetic, choices, indirect_object


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, the completion that is right (with its leading space) and one that is wrong."""

    task: str
    prompt: str
    right: str
    wrong: str


def sums(n: int, seed: int = 0) -> list[Question]:
    """Two-digit additions and subtractions: "23+45=", which "68" follows."""
    draw = random.Random(seed)  # noqa: S311
    told = []
    for asked in draw.sample(sorted(arithmetic.held_out_sums()), n):
        result = arithmetic.result(asked)
        right, wrong = str(result), str(result + draw.choice((-10, -1, 1, 10)))
        told.append(
            Question(task="arithmetic", prompt=arithmetic.short(asked), right=right, wrong=wrong)
        )
    return told


def indirect_objects(n: int, seed: int = 0) -> list[Question]:
    """Sentences that end in the name of the one of two people who did not act."""
    draw, pairs = random.Random(seed), sorted(map(sorted, indirect_object.held_out_pairs()))  # noqa: S311
    told = []
    for _ in range(n):
        a, b = draw.sample(draw.choice(pairs), 2)
        subject, other = draw.choice(((a, b), (b, a)))
        prompt = indirect_object.prompt(a, b, subject, draw)
        told.append(
            Question(task="indirect object", prompt=prompt, right=f" {other}", wrong=f" {subject}")
        )
    return told


def colour_choices(n: int, seed: int = 0) -> list[Question]:
    """Multiple choice about the colour of an object just told, with choices A to D."""
    return _choices(n, seed, objects=1)


def colour_choices_of_two(n: int, seed: int = 0) -> list[Question]:
    """The same where two objects are told and one of them is asked about."""
    return _choices(n, seed, objects=2)


def _choices(n: int, seed: int, objects: int) -> list[Question]:
    draw = random.Random(seed)  # noqa: S311
    told = []
    for _ in range(n):
        asked = choices.draw_choice(draw, held_out=True, plain=True, objects=objects)
        other = draw.choice([x for x in asked.letters if x != asked.answer])
        told.append(
            Question(
                task="choices", prompt=asked.prompt, right=f" {asked.answer}", wrong=f" {other}"
            )
        )
    return told


TASKS: dict[str, Callable[[int, int], list[Question]]] = {
    "arithmetic": sums,
    "indirect object": indirect_objects,
    "choices": colour_choices,
}


@torch.inference_mode()
def accuracy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Question],
    batch: int = 64,
) -> float:
    """Share of questions that greedy decoding answers with exactly the right completion."""
    right = 0
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        right += sum(
            said.startswith(q.right) and not said[len(q.right) : len(q.right) + 1].isalnum()
            for q, said in zip(part, completions(model, tokenizer, part), strict=True)
        )
    return right / len(questions)


@torch.inference_mode()
def completions(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: list[Question]
) -> list[str]:
    """What greedy decoding says in four tokens, in one left-padded batch."""
    held = tokenizer([q.prompt for q in questions], return_tensors="pt", padding=True)
    said = model.generate(
        input_ids=held["input_ids"],
        attention_mask=held["attention_mask"],
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    length = held["input_ids"].shape[1]
    return tokenizer.batch_decode(said[:, length:], skip_special_tokens=False)
