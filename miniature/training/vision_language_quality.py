"""How good is the vision-language model: six tasks in words and in pictures, samples, its card.

`python -m miniature.training.vision_language_quality FOLDER` writes `README.md` and `figures.json`
beside the model, from the files alone.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2VLForConditionalGeneration

from miniature.sight.item import Item
from miniature.sight.tasks import TASKS, some
from miniature.training.vision_language import Accuracy, accuracy, held_out_rows, mean
from miniature.training.vision_language_rows import text_content, told

ITEMS, SEED = 400, 77
"""Held-out items of each task, of a seed that training never judged itself on."""
_ABOUT = {
    "counting": "how many of one kind are among up to seven objects",
    "colour order": "the colour of the n-th object in a row, from the left or the right",
    "sum": "a sum of two numbers of two digits, written by hand",
    "person": "who of 32 people is seen, or told of by looks",
    "feeling": "which of five moods a face shows",
    "scene": "which of eight scenes it is",
}


@torch.inference_mode()
def answered(model: Any, words: Any, cutter: Any, item: Item, *, seen: bool) -> str:
    """What the library's greedy `generate` says to the picture, or to the words."""
    content = item.question if seen else text_content(item)
    prompt, _ = told(content, "", size=item.picture.size if seen else None)
    ids = words(prompt, return_tensors="pt").input_ids
    picture = cutter(item.picture, return_tensors="pt") if seen else {}
    types = {"mm_token_type_ids": (ids == model.config.image_token_id).int()} if seen else {}
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        **picture,
        **types,
    )
    return words.decode(said[0, ids.shape[1] :], skip_special_tokens=True)


def measured(model: Any, words: Any, items: int = ITEMS, seed: int = SEED) -> Accuracy:
    """Exact greedy answers to held-out items, by task and modality."""
    return accuracy(model, held_out_rows(words, items, seed), "cpu", batch=100)


def write_card(folder: Path) -> None:
    """README.md and figures.json beside the model."""
    model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    words, cutter = (
        AutoTokenizer.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    model.eval()
    found = measured(model, words)
    trained = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    figures = {
        "accuracy": found,
        "items": ITEMS,
        "mean": round(mean(found), 4),
        "seed": SEED,
        "trained": {name: trained[name] for name in ("seconds", "seed", "steps")},
    }
    text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
    (folder / "figures.json").write_text(text, encoding="utf-8")
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        items=ITEMS,
        seed=SEED,
        steps=trained["steps"],
        seconds=trained["seconds"],
        rows="\n".join(_row(name, found[name]) for name in TASKS),
        samples="\n".join(_samples(model, words, cutter)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _row(name: str, share: dict[str, float]) -> str:
    text, image = 100 * share["text"], 100 * share["image"]
    return f"| {name}: {_ABOUT[name]} | {text:.1f} % | {image:.1f} % | {text - image:+.1f} |"


def _samples(model: Any, words: Any, cutter: Any) -> list[str]:
    lines = []
    for name in TASKS:
        for item in some(name, "held-out", 2, SEED + 1):
            seen, read = (answered(model, words, cutter, item, seen=s) for s in (True, False))
            lines.append(
                f"| {item.description} | {item.question} | {item.answer} | {read} | {seen} |"
            )
    return lines


CARD = """# The miniature's vision-language model

A Qwen2-VL of {parameters:.2f} million parameters: a decoder of twelve layers (width 192, six heads
of 32 over two of keys and values, SwiGLU 448, tied embeddings, M-RoPE) behind a vision tower of two
blocks (width 96, patches of 8 pixels, merged two by two: one visual token is 16 x 16 pixels). The
tower is shallow and the decoder deep on purpose, so that much of the seeing happens in the decoder.
Byte-level BPE with digits one by one, Qwen's special tokens, its chat template without a default
system message. float16.

It was trained from scratch for {seconds:.0f} seconds on one GPU ({steps} steps of 512 rows) on six
tasks that a program draws and tells (`miniature/sight/`), first in words only, then two thirds in
pictures. The same question is asked about a picture and about words in its place, so the gap
between the modalities can be measured. It knows nothing else.

## Accuracy

Exact greedy answers to {items} held-out items a task (seed {seed}): contents, not only pictures,
that training never showed.

| task | words | pictures | gap |
|---|---|---|---|
{rows}

## Samples

Held-out items: the description, the question, what is right, and the answers to words and picture.

| description | question | right | words | picture |
|---|---|---|---|---|
{samples}

Made by `python -m miniature.training.vision_language`; see
[the page](../../../docs/miniature-vision-language.md).
"""


def main(asked: Sequence[str]) -> None:
    """Write the card of a folder."""
    write_card(Path(asked[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
