"""A text to learn from, and the tokens that mark who speaks."""

from dataclasses import dataclass

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, BEGIN, END, SYSTEM, USER, ASSISTANT)
"""In this order they are the first ids of the vocabulary."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text, what kind of text it is and which concepts it speaks of."""

    text: str
    kind: str
    concepts: tuple[str, ...] = ()


def chat(*turns: tuple[str, str]) -> str:
    """Turns of (role, content) as the chat template writes them, without the first token.

    The last turn's end is left to whoever ends the document.
    """
    return END.join(f"<|{role}|>{content}" for role, content in turns)


def sentence(words: str) -> str:
    """The words with a capital in front; they bring their own full stop."""
    return words[0].upper() + words[1:]
