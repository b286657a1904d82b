"""A tokenizer that several threads may use: it keeps padding and truncation as state."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2.exceptions import TemplateError

from models.errors import BadConversation, NoChatTemplate


@dataclass(frozen=True, eq=False)
class Words:
    """A tokenizer and its lock."""

    tokenizer: Any
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ids(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids with the marks that the tokenizer puts around a text; nothing is cut."""
        with self.lock:
            return self.tokenizer(
                text,
                padding=False,
                truncation=False,
                verbose=False,
                add_special_tokens=special,
            ).input_ids

    def text(self, ids: Sequence[int], *, special: bool = False) -> str:
        """What the ids spell; special tokens only on request."""
        with self.lock:
            return self.tokenizer.decode(
                list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )

    def conversation(self, messages: Sequence[Mapping[str, str]], model: str) -> list[int]:
        """The ids of a conversation by the tokenizer's own template, up to the answer's start.

        Raises:
            NoChatTemplate: The tokenizer brings none.
            BadConversation: The template refuses it, as some do a system message.
        """
        if not self.tokenizer.chat_template:
            raise NoChatTemplate(model)
        try:
            with self.lock:
                return self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    add_generation_prompt=True,
                    return_dict=False,
                )
        except TemplateError as refused:
            raise BadConversation(model, str(refused)) from refused

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that stand for marks, not for text."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset(self.tokenizer.all_special_ids) | {i for i, t in added if t.special}
