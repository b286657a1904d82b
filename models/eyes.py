"""A family's own processor: from messages with pictures to ids and pixels.

Loaded without its video side: videos are not read, and the library's video classes need
torchvision, which Tiller does not. Pictures are resized by the library's PIL classes, so that the
same picture gives the same pixels on every machine.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers
from jinja2.exceptions import TemplateError
from PIL.Image import Image
from torch import Tensor
from transformers.models.auto import processing_auto

from models.errors import BadConversation, BadPart, NoChatTemplate, UnsupportedFamily

Message = Mapping[str, Any]
"""`role`, and `content`: a text, or parts: `{"type": "text", "text": ...}`, `{"type": "image"}`."""

_MARKS = ("image_token", "video_token", "boi_token")
"""Where processors name what their own text has in the place of a picture or a video."""


@dataclass(frozen=True, eq=False)
class Eyes:
    """A processor, which several threads may use: its tokenizer keeps state."""

    processor: Any
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, messages: Sequence[Message], model: str) -> Mapping[str, Tensor]:
        """The tensors of one conversation, up to where the answer begins.

        Raises:
            NoChatTemplate: Neither the processor nor its tokenizer brings one.
            BadConversation: The template refuses the messages.
        """
        if not self._template:
            raise NoChatTemplate(model)
        try:
            with self.lock:
                try:
                    return self._read(messages)
                except TypeError:  # Pixtral's template takes parts from the user alone
                    return self._read([_in_words(message) for message in messages])
        except TemplateError as refused:
            raise BadConversation(model, str(refused)) from refused

    @property
    def _template(self) -> Any:
        """The processor's own, else its tokenizer's: older folders have it there."""
        return self.processor.chat_template or self.processor.tokenizer.chat_template

    def _read(self, messages: Sequence[Message]) -> Mapping[str, Tensor]:
        return self.processor.apply_chat_template(
            list(messages),
            chat_template=None if self.processor.chat_template else self._template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def digest(self, picture: Image) -> str:
        """SHA-256 of a picture's pixels and of how pictures are processed here."""
        found = hashlib.sha256(self._settings)
        found.update(f"{picture.mode} {picture.size}".encode())
        found.update(picture.tobytes())
        return found.hexdigest()

    @cached_property
    def _settings(self) -> bytes:
        return self.processor.image_processor.to_json_string().encode()

    def check(self, messages: Sequence[Message], image_ids: frozenset[int]) -> None:
        """BadPart unless every part is a picture, or a text that holds no place for one."""
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            for part in parts:
                if part["type"] == "text":
                    self.check_text(part["text"], image_ids)
                elif part["type"] != "image":
                    raise BadPart(f"it is of the kind {part['type']!r}")

    def check_text(self, text: str, image_ids: frozenset[int]) -> None:
        """BadPart if the text holds a mark that the model would take for a picture or a video."""
        marks = [self.processor.tokenizer.convert_ids_to_tokens(sorted(image_ids))]
        marks.append([getattr(self.processor, name, None) for name in _MARKS])
        for mark in (mark for of in marks for mark in of):
            if mark and mark in text:
                raise BadPart(f"its text holds {mark!r}, which stands for a picture or a video")


def _in_words(message: Message) -> Message:
    """The message with one text for its parts, unless a picture is among them."""
    parts = message["content"]
    if isinstance(parts, str) or any(part["type"] != "text" for part in parts):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


def open_eyes(folder: Path) -> Eyes:
    """The processor of a folder; UnsupportedFamily if the library has none for its class."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    named = processing_auto.PROCESSOR_MAPPING_NAMES.get(kind)  # pyright: ignore[reportPrivateImportUsage]
    if named is None:
        raise UnsupportedFamily(kind, "models whose processor the library knows")
    processor = without_video(getattr(transformers, named))
    return Eyes(processor.from_pretrained(folder, local_files_only=True, backend="pil"))


def without_video(processor: Any) -> Any:
    """A processor's class without its video side; the class itself if it has none."""
    if "video_processor" not in processor.get_attributes():
        return processor

    kept = [part for part in processor.get_attributes() if part != "video_processor"]
    return type(
        processor.__name__, (processor,), {"get_attributes": classmethod(lambda _: list(kept))}
    )
