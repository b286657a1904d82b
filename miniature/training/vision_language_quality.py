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

from miniature.sight.item import Item
from miniature.sight.tasks import TASKS, some
from miniature.training.vision_language import Accuracy, mean
from models.decoder import TOWER
from models.hosted import HostedModel
from models.loading import load
from models.sight import Shown
from models.vision_language import VisionLanguage

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


LONGEST = 8
"""Tokens of an answer."""


def answered(hosted: HostedModel, item: Item, *, seen: bool) -> str:
    """The greedy answer to the picture, or to the words, as the service reads both."""
    family = seeing(hosted)
    ids, shown = _read(hosted, item, seen=seen)
    first, ends = len(ids), family.eos_ids(hosted)
    for _ in range(LONGEST):
        told = int(family.logits(hosted, torch.tensor([ids]), shown)[0, -1].argmax())
        if told in ends:
            break
        ids.append(told)
    return family.detokenize(hosted, ids[first:])


def right(hosted: HostedModel, item: Item, *, seen: bool) -> bool:
    """Whether the greedy answer is the right one, to its end: from one forward over it."""
    family = seeing(hosted)
    ids, shown = _read(hosted, item, seen=seen)
    answer = list(family.tokenize(hosted, item.answer, special=False))
    logits = family.logits(hosted, torch.tensor([ids + answer]), shown)
    said = logits[0, len(ids) - 1 :].argmax(dim=-1).tolist()
    return said[:-1] == answer and said[-1] in family.eos_ids(hosted)


def seeing(hosted: HostedModel) -> VisionLanguage:
    """Its family, which reads pictures."""
    assert isinstance(hosted.family, VisionLanguage)  # noqa: S101 - it was trained to
    return hosted.family


def _read(hosted: HostedModel, item: Item, *, seen: bool) -> tuple[list[int], list[Shown]]:
    family = seeing(hosted)
    if not seen:
        return list(family.look(hosted, item.in_words, ())[0]), []
    ids, sight = family.look(hosted, item.in_picture, [item.picture])
    assert sight is not None  # noqa: S101 - there is a picture
    return list(ids), [Shown(sight=sight, seen=family.see(hosted, sight))]


@torch.inference_mode()
def measured(hosted: HostedModel, items: int = ITEMS, seed: int = SEED) -> Accuracy:
    """Exact greedy answers to held-out items, by task and modality."""
    found: Accuracy = {}
    for name in TASKS:
        asked = some(name, "held-out", items, seed)
        for modality, seen in (("text", False), ("image", True)):
            hits = sum(right(hosted, item, seen=seen) for item in asked)
            found.setdefault(name, {})[modality] = round(hits / items, 4)
    return found


@torch.inference_mode()
def write_card(folder: Path) -> None:
    """README.md and figures.json beside the model."""
    hosted = load("miniature-vl", folder)
    found = measured(hosted)
    trained = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    rounds = [trained["earlier"], trained] if "earlier" in trained else [trained]
    figures = {
        "accuracy": found,
        "items": ITEMS,
        "mean": round(mean(found), 4),
        "seed": SEED,
        "trained": [{name: one[name] for name in ("seconds", "seed", "steps")} for one in rounds],
    }
    text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
    (folder / "figures.json").write_text(text, encoding="utf-8")
    parameters = sum(p.numel() for p in hosted.modules[TOWER].parameters())
    card = CARD.format(
        parameters=parameters / 1e6,
        items=ITEMS,
        seed=SEED,
        rounds="\n".join(_round(number, one) for number, one in enumerate(rounds, 1)),
        rows="\n".join(_row(name, found[name]) for name in TASKS),
        samples="\n".join(_samples(hosted)),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    hosted.close()


def _round(number: int, told: dict[str, Any]) -> str:
    settings = told["settings"]
    kept = (
        number,
        f"{told['seconds']:.0f}",
        told["steps"],
        settings["batch"],
        settings["text_first"],
        settings["image_share"],
        settings["muon_rate"],
        settings["rate"],
        told["seed"],
    )
    return "| " + " | ".join(map(str, kept)) + " |"


def _row(name: str, share: dict[str, float]) -> str:
    text, image = 100 * share["text"], 100 * share["image"]
    return f"| {name}: {_ABOUT[name]} | {text:.1f} % | {image:.1f} % | {text - image:+.1f} |"


def _samples(hosted: HostedModel) -> list[str]:
    lines = []
    for name in TASKS:
        for item in some(name, "held-out", 2, SEED + 1):
            seen, read = (answered(hosted, item, seen=s) for s in (True, False))
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

It was trained on one GPU (H100) on six tasks that a program draws and tells (`miniature/sight/`).
The same question is asked about a picture and about words in its place, so the gap between the
modalities can be measured. It knows nothing else. The first round starts from random weights and
reads words only at first; the second goes on from there and asks more often what was hard. "Words
first" is that share of a round, "pictures" their share of a batch after it.

| round | seconds | steps | batch | words first | pictures | Muon's rate | AdamW's rate | seed |
|---|---|---|---|---|---|---|---|---|
{rounds}

## Accuracy

Exact greedy answers to {items} held-out items a task (seed {seed}): contents, not only pictures,
that training never showed. Read as the service reads them: the model's own processor, float32.

| task | words | pictures | gap |
|---|---|---|---|
{rows}

## Samples

Held-out items: the description, the question, what is right, and the answers to words and picture.

| description | question | right | words | picture |
|---|---|---|---|---|
{samples}

Made by `make miniature`; what else was measured, and whether back-patching helps here:
[the page](../../../docs/miniature-vision-language.md).
"""


def main(asked: Sequence[str]) -> None:
    """Write the card of a folder."""
    write_card(Path(asked[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
