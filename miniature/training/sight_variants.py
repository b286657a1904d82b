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
READING_ON = replace(READING, muon_rate=5e-3, rate=2e-3)
"""For a decoder that was deepened and nearly reads already."""
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
        deepens: A stage's folder with fewer layers that are multiplied, so that neither reading nor
            the merger is learned from the beginning; empty for random weights.
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
    deepens: str = ""
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
            ("words", READING_ON if self.deepens else READING, ""),
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
            if variant.deepens:
                deepen(pupil.model, Path(variant.deepens))
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
    mine, theirs = model.state_dict(), _loaded(folder).state_dict()
    seen = [name for name in theirs if name.startswith(TOWER) and not name.startswith(MERGER)]
    differing = [n for n in seen if n not in mine or mine[n].shape != theirs[n].shape]
    if differing:
        raise ValueError(f"The towers differ: {', '.join(differing)}")
    model.load_state_dict({name: theirs[name] for name in seen}, strict=False)


@torch.no_grad()
def deepen(model: Any, folder: Path) -> None:
    """Give a model the weights of another one with fewer layers, each of them several times.

    A layer adds its part to the residual stream; n copies that add an n-th of it, one behind the
    other, do nearly the same in smaller steps, and learn to do it well within minutes.

    Raises:
        ValueError: The smaller depth does not divide the larger one.
    """
    other = _loaded(folder)
    mine, theirs = model.model.language_model.layers, other.model.language_model.layers
    times, rest = divmod(len(mine), len(theirs))
    if rest:
        raise ValueError(f"{len(mine)} layers cannot be made of {len(theirs)}")
    kept = {name: v for name, v in other.state_dict().items() if ".layers." not in name}
    model.load_state_dict(kept, strict=False)
    for index, layer in enumerate(mine):
        layer.load_state_dict(theirs[index // times].state_dict())
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            part.weight.div_(times)


def _loaded(folder: Path) -> Any:
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


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
