"""PaliGemma's way of reading, whichever text model is behind its eyes.

A prompt is its pictures and then one text; all of it sees all of it, and only what is written
behind it is causal (Beyer et al. 2024, arXiv 2407.07726). So a prompt is read in one piece, and
nothing that is kept of it serves another question.

Covered: one message with its pictures, wherever among the texts they stand, and a text behind
them. Not covered: conversations, which it was not made for; prompts without a picture, which its
processor does not take.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from models.decoder import find_decoder
from models.errors import BadConversation
from models.eyes import Eyes, Message
from models.hosted import HostedModel
from models.sight import Shown, Span, spans_of
from models.vision_language import VisionLanguage

PLACE = "<image>"
"""Stands for one picture in the text that the processor takes."""


class PrefixRead(VisionLanguage):
    """A family whose prompts are read in both directions."""

    text: str
    """The kind of its text model: what tells PaliGemmas apart, which are of one class."""
    joint_within_window = False

    def matches(self, folder: Path) -> bool:
        """Whether `config.json` names its class and its text model."""
        return super().matches(folder) and _text_model_of(folder) == self.text

    def prepare(self, model: Any) -> None:
        """Where no mask is given, attention is causal: its layers say otherwise of themselves."""
        for layer in find_decoder(model).layers:
            layer.self_attn.is_causal = True  # type: ignore[union-attr]

    def read_prompt(self, hosted: HostedModel, messages: Sequence[Message]) -> Mapping[str, Tensor]:
        """What the processor makes of the one message.

        Raises:
            BadConversation: There are several messages, or no picture.
        """
        if len(messages) != 1:
            raise BadConversation(hosted.name, "it takes one message, and there are several")
        parts = messages[0]["content"]
        pictures = [part["image"] for part in parts if part["type"] == "image"]
        if not pictures:
            raise BadConversation(hosted.name, "it takes no text without a picture")
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        eyes: Eyes = hosted.parts["eyes"]
        with eyes.lock:
            read = eyes.processor(
                text=[PLACE * len(pictures) + text], images=[pictures], return_tensors="pt"
            )
        return {name: tensor for name, tensor in read.items() if name != "labels"}

    def spans(
        self,
        hosted: HostedModel,
        ids: Sequence[int],  # noqa: ARG002 - of families that put marks between pictures
        visual: Sequence[int],
    ) -> tuple[Span, ...]:
        """Each picture's columns: pictures stand side by side, all of one length."""
        length = hosted.parts["eyes"].processor.image_seq_length
        return tuple(
            edges
            for first, end in spans_of(visual)
            for edges in pairwise(range(first, end + 1, length))
        )

    def turning(
        self,
        positions: Int[Tensor, "rows tokens"],
        starts: Sequence[int],  # noqa: ARG002 - of families with several axes
        shown: Sequence[Shown | None],  # noqa: ARG002
    ) -> Int[Tensor, "rows tokens"]:
        """Positions from 1, as the class counts them: half precision rounds rotations by them."""
        return positions + 1

    def joint(self, hosted: HostedModel, ids: Sequence[int]) -> tuple[Span, ...]:  # noqa: ARG002
        """The whole prompt."""
        return ((0, len(ids)),)


def _text_model_of(folder: Path) -> str:
    stated = json.loads((folder / "config.json").read_text())
    return stated.get("text_config", {}).get("model_type", "gemma")
