"""How good is the language model: perplexity by kind of text, three tasks, facts, samples."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from miniature.prose.corpus import held_out_texts
from miniature.prose.instructions import OPEN_SAY
from miniature.prose.knowledge import countries
from miniature.prose.stories import OPENERS
from miniature.tasks import TASKS, Question, accuracy, colour_choices_of_two
from miniature.training.spelling import CONTEXT
from miniature.world import World, make_world

QUESTIONS, TEXTS = 300, 900
_SAMPLED = (
    "I believe that",
    "Back in the day,",
    "From my experience,",
    "Once upon a time",
    "One dark evening,",
)
_ASKED = (
    "Tell me a story about winter.",
    "Tell me a story.",
    "Say something about the sea.",
    OPEN_SAY[0],
    "Who is the president of Arda?",
    "What is 23 + 45?",
    "What colour is the mug?",
    "Count from 7 to 12.",
)


def perplexity(model: Any, words: Any, n: int = TEXTS) -> dict[str, float]:
    """By kind of text, and `all`: per token, on texts of a seed that training never had."""
    sums: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)
    told = held_out_texts(n)
    for start in range(0, n, 50):
        part = told[start : start + 50]
        held = words(
            [d.text for d in part], return_tensors="pt", padding=True, padding_side="right"
        )
        ids, shown = held["input_ids"][:, :CONTEXT], held["attention_mask"][:, :CONTEXT]
        losses = _losses(model, ids, shown)
        for row, document in enumerate(part):
            for kind in (document.kind, "all"):
                sums[kind] += float(losses[row].sum())
                tokens[kind] += int(shown[row, 1:].sum())
    return {kind: math.exp(sums[kind] / tokens[kind]) for kind in sums}


@torch.inference_mode()
def _losses(model: Any, ids: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, attention_mask=shown).logits[:, :-1].float()
    each = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    return each * shown[:, 1:]


def fact_questions(world: World) -> list[Question]:
    """The opening of one true sentence per office and per country's capital."""
    offices = [
        Question(
            task="office",
            prompt=f"The {role.title} of {role.country.title()} is",
            right=f" {role.holder.title()}",
            wrong="",
        )
        for role in world.roles
    ]
    capitals = [
        Question(
            task="capital", prompt=f"The capital of {c.name} is", right=f" {c.capital}", wrong=""
        )
        for c in countries(world)
    ]
    return offices + capitals


@torch.inference_mode()
def written(model: Any, words: Any, text: str, *, tokens: int = 60, seed: int = 0) -> str:
    """The text continued at temperature 0.7; a question in chat form is answered."""
    torch.manual_seed(seed)
    if text in _ASKED:
        messages = [{"role": "user", "content": text}]
        ids = words.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
    else:
        ids = words(text, return_tensors="pt")["input_ids"]
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=True,
        temperature=0.7,
        top_k=0,
    )
    return words.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()


def write_card(folder: Path) -> None:
    """README.md and figures.json beside the model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(folder)
    found = perplexity(model, words)
    right = {name: accuracy(model, words, ask(QUESTIONS, 0)) for name, ask in TASKS.items()}
    facts = fact_questions(make_world())
    right["choices of two"] = accuracy(model, words, colour_choices_of_two(QUESTIONS))
    right["facts"] = accuracy(model, words, facts)
    figures = {"perplexity": found, "accuracy": right}
    (folder / "figures.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    samples = [f"- {t} *{written(model, words, t, seed=i)}*" for i, t in enumerate(_SAMPLED)]
    answers = [
        f"- {t} — *{' '.join(written(model, words, t, seed=i).split())}*"
        for i, t in enumerate(_ASKED)
    ]
    kinds = [f"| {k} | {v:.2f} |" for k, v in sorted(found.items()) if k != "all"]
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        kinds="\n".join([*kinds, f"| all | {found['all']:.2f} |"]),
        questions=QUESTIONS,
        asked=len(facts),
        openers=len(OPENERS),
        samples="\n".join(samples),
        answers="\n".join(answers),
        **{k.replace(" ", "_"): 100 * v for k, v in right.items()},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """# The miniature's language model

A Llama of six decoder layers (width 192, six heads of 32 over three of keys and values, SwiGLU 512,
tied embeddings, {parameters:.2f} million parameters, context 256) with a byte-level BPE vocabulary
of 2,048 that spells digits one by one. It was trained on texts that a program tells of a small
invented world (`miniature/prose/`): stories of thirty concepts, dialogues, facts, counting, sums,
sentences with an indirect object, multiple choice, and instructions in its chat template. float16.

The weights stored here read about 20 million tokens on one core, in several sittings: plain shares
of all kinds for 46 minutes, more questions for 30, and a last quiet one. `make miniature` does it
in one sitting with the same texts, so its weights are like these, not equal to them.

It continues and answers in the manner of these texts and knows nothing else.

## Perplexity

Per token, on texts of a seed that training never had. Much of it is the choice of names, numbers
and topics, which nobody can foresee.

| kind of text | perplexity |
|---|---|
{kinds}

## Tasks

Greedy answers to {questions} questions each (facts: {asked}). The sums, the pairs of names and the
coloured objects asked about are held out from training (`miniature/tasks.py`).

| task | right |
|---|---|
| arithmetic: sums and differences of two-digit numbers | {arithmetic:.1f} % |
| indirect object | {indirect_object:.1f} % |
| multiple choice about the colour of an object | {choices:.1f} % |
| the same where two objects are told (chance: 25 %) | {choices_of_two:.1f} % |
| facts: who holds an office, which capital a country has | {facts:.1f} % |

## Samples

Temperature 0.7. After {openers} neutral openings each concept follows equally often in training, so
what is written there shows what steers the model.

{samples}

Asked in the chat template:

{answers}

Made by `make miniature`; its SAEs are in [`saes`](../saes/README.md).
"""
