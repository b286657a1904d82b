"""Vision-language models that learn to read long before they see, at several depths.

The shipped model learns words and pictures with one loss. Large models do not: a decoder reads for
a long time, and what it is shown later passes through a merger that learns to speak to it. Here a
decoder learns tasks in words and is frozen; the shipped vision tower, frozen as well, is joined to
it by a new merger, which learns alone (the first stage of LLaVA, Liu et al. 2023). A last stage may
let everything learn (its second). Every stage is a folder that loads as the shipped model does, so
that `tiller evaluate backpatch -m FOLDER/merger` says what back-patching does for it.

`python -m miniature.training.sight_variants --layers 18 --out FOLDER`
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2VLForConditionalGeneration
from transformers.utils import logging

from miniature import weights_path
from miniature.sight.item import items
from miniature.sight.processor import make_tokenizer
from miniature.sight.tasks import TASKS, some
from miniature.training.vision_language import SHARES, Course, Lesson, Pupil, learn
from miniature.training.vision_language_model import Shape
from miniature.training.vision_language_rows import rows_of

TOWER, MERGER = "model.visual.", "model.visual.merger."
READING = Lesson(batch=64, text_first=1.0)
JOINING = Lesson(batch=64, text_first=0.0, image_share=1.0, seed=1)
"""Only the merger learns; the decoder and the tower are as they were."""
THAWED = Lesson(
    batch=64, text_first=0.0, image_share=0.7, muon_rate=3e-3, rate=1e-3, warmup=0.1, seed=2
)
"""Everything learns."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is trained.

    Attributes:
        layers: Of the decoder.
        width: Of the residual stream.
        tasks: Their names, with commas between.
        drawn: Items of each task.
        words, merger, whole: Seconds of each stage; without seconds there is no such stage.
        report: Seconds between two reports.
        judged: Held-out items of each task.
    """

    layers: int = 12
    width: int = 192
    tasks: str = ",".join(TASKS)
    drawn: int = 15_000
    words: float = 900.0
    merger: float = 500.0
    whole: float = 0.0
    report: float = 60.0
    judged: int = 150

    @property
    def shape(self) -> Shape:
        """The model's."""
        return Shape(layers=self.layers, width=self.width)

    @property
    def shares(self) -> dict[str, float]:
        """Of a batch, by task."""
        whole = sum(SHARES[name] for name in self.tasks.split(","))
        return {name: SHARES[name] / whole for name in self.tasks.split(",")}

    def lessons(self, folder: Path) -> Iterator[tuple[str, Lesson, str]]:
        """Each stage's name, its lesson, and what a parameter that learns has in its name."""
        came_from = ""
        for name, lesson, learns in (
            ("words", READING, ""),
            ("merger", JOINING, MERGER),
            ("whole", THAWED, ""),
        ):
            if seconds := getattr(self, name):
                told = {"seconds": seconds, "report": self.report, "judged": self.judged}
                yield name, replace(lesson, start=came_from, **told), learns
                came_from = str(folder / name)


def train(folder: Path, variant: Variant, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Draw, then stage after stage; yields what is to be reported.

    A stage whose folder is there is not made again.

    Raises:
        KeyError: There is no such task.
    """
    tokenizer = make_tokenizer()
    rows = [
        one.to(device)
        for name in variant.shares
        for one in rows_of(islice(items(TASKS[name], "train", 0), variant.drawn), tokenizer)
    ]
    held = [
        one.to(device)
        for name in variant.shares
        for one in rows_of(some(name, "held-out", variant.judged, seed=1), tokenizer)
    ]
    for stage, lesson, learns in variant.lessons(folder):
        if (folder / stage / "card.json").exists():
            continue
        pupil = Pupil.begin(tokenizer, device, lesson, variant.shape, learns)
        if not lesson.start:
            take_tower(pupil.model, weights_path("vision-language"))
        course = Course(rows, lesson, device, variant.shares)
        asked = [one for one in held if stage != "words" or one.size is None]
        settings = {**asdict(lesson), **asdict(variant), **asdict(variant.shape), "learns": learns}
        for told in learn(folder / stage, tokenizer, pupil, course, asked, settings):
            yield {"stage": stage, **told}


def take_tower(model: Any, folder: Path) -> None:
    """Give a model another one's vision tower, but for the merger.

    Raises:
        ValueError: The towers differ in shape.
    """
    other: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    mine, theirs = model.state_dict(), other.state_dict()
    seen = [name for name in theirs if name.startswith(TOWER) and not name.startswith(MERGER)]
    differing = [n for n in seen if n not in mine or mine[n].shape != theirs[n].shape]
    if differing:
        raise ValueError(f"The towers differ: {', '.join(differing)}")
    model.load_state_dict({name: theirs[name] for name in seen}, strict=False)


def main() -> None:
    """The command line: every field of `Variant` is an option."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for one in fields(Variant):
        parser.add_argument(f"--{one.name}", type=type(one.default), default=one.default)
    asked = vars(parser.parse_args())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.disable_progress_bar()
    folder, device = asked.pop("out"), asked.pop("device")
    for told in train(folder, Variant(**asked), device):
        print(json.dumps(told), flush=True)  # noqa: T201 - the report of a long run


if __name__ == "__main__":
    main()
