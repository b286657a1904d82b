"""The judge for real checkpoints: a CLIP that answers between texts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from evaluation.errors import NotAJudge, UnreadableCases
from evaluation.judge import Picture, Verdict, choice
from evaluation.lens import Question


class ClipJudge:
    """Zero-shot CLIP over two texts: softmax of `exp(logit_scale) * cos`, as the paper judges.

    With `laion/CLIP-ViT-bigG-14-laion2B-39B-b160k` this is the paper's judge. In the two-text test
    a picture like neither text passes at random.
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu", rows: int = 32) -> None:
        """Load a `CLIPModel` folder; `rows` pictures are seen at once.

        Raises:
            NotAJudge: The folder holds no such model.
        """
        try:
            model = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise NotAJudge(str(folder)) from error
        self.model = model.to(device).eval().requires_grad_(requires_grad=False)  # type: ignore[arg-type]
        self.name = str(folder)
        self.rows = rows
        self.processor = _processor(Path(folder))
        self._texts: dict[str, torch.Tensor] = {}

    def __call__(
        self, pictures: Sequence[Picture], answers: Sequence[tuple[str, str]]
    ) -> list[Verdict]:
        """Which of its two texts each picture is nearer to."""
        return self.choose(pictures, answers)

    def choose(
        self, pictures: Sequence[Picture], answers: Sequence[Sequence[str]]
    ) -> list[Verdict]:
        """Which of its texts, however many, each picture is nearest to."""
        seen = self.embed_pictures(pictures)
        scale = float(self.model.logit_scale.exp())
        found = []
        for row, texts in zip(seen, answers, strict=True):
            cosines = [float(row @ self.embed_text(text)) for text in texts]
            verdict = choice(texts, [scale * c for c in cosines])
            found.append(replace(verdict, similarity=cosines[0]))
        return found

    @torch.no_grad()
    def embed_pictures(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """(pictures, d), of length one."""
        found = []
        for start in range(0, len(pictures), self.rows):
            images = [Image.fromarray(p) for p in pictures[start : start + self.rows]]
            pixels = self.processor(images=images, return_tensors="pt")["pixel_values"]
            states = self.model.vision_model(pixels.to(self.model.device)).pooler_output
            found.append(self.model.visual_projection(states))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def embed_text(self, text: str) -> torch.Tensor:
        """(d,), of length one; kept, as runs ask for few texts many times."""
        if text not in self._texts:
            ids = self.tokenizer([text], return_tensors="pt", truncation=True).to(self.model.device)
            state = self.model.text_model(**ids).pooler_output
            projected = self.model.text_projection(state)[0]
            self._texts[text] = torch.nn.functional.normalize(projected, dim=-1)
        return self._texts[text]


def _processor(folder: Path) -> CLIPImageProcessorPil:
    """The folder's own preparation of pictures, or CLIP's at the tower's size."""
    if (folder / "preprocessor_config.json").exists():
        return CLIPImageProcessorPil.from_pretrained(folder)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    side = int(told["vision_config"].get("image_size", 224))
    return CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


class ClipLensJudge:
    """The lens's questions, answered by a CLIP: the nearest of a question's option texts.

    A question about one side is asked of that half of the picture.
    """

    def __init__(self, clip: ClipJudge) -> None:
        self.clip = clip

    def __call__(self, pictures: Sequence[Picture], questions: Sequence[Question]) -> list[Verdict]:
        """What each picture looks most like.

        Raises:
            UnreadableCases: A question carries no options.
        """
        for question in questions:
            if not question.options:
                raise UnreadableCases(
                    f"The question {question.question!r} ({question.right})",
                    "carries no `options`, which a CLIP judge chooses from",
                )
        shown = [_side(p, q) for p, q in zip(pictures, questions, strict=True)]
        return self.clip.choose(shown, [q.options for q in questions])


def _side(picture: Picture, question: Question) -> Picture:
    middle = picture.shape[1] // 2
    match question.place:
        case "left":
            return np.ascontiguousarray(picture[:, :middle])
        case "right":
            return np.ascontiguousarray(picture[:, middle:])
        case _:
            return picture
