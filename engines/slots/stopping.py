"""From tokens to text as they come: whole characters, and nothing that may become a stop string."""

from collections.abc import Callable, Sequence

_CONTEXT = 6
"""Tokens of the prompt that the first ones are decoded behind: a space may depend on them."""
_LONGEST = 8
"""Tokens that may wait for the rest of a character; none has more bytes than 4."""
_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are not, or not yet, a character."""


class Pieces:
    """What each token adds to the text; a character is said by the token that completes it.

    Args:
        decode: Tokens to text.
        prompt: The tokens in front.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prompt[-_CONTEXT:])
        self._said = len(self._ids)
        self._known = decode(self._ids).rstrip(_UNFINISHED) if self._ids else ""

    def add(self, token: int) -> str:
        """What the text becomes longer by."""
        self._ids.append(token)
        text = self._decode(self._ids)
        waiting = len(self._ids) - self._said
        if text.endswith(_UNFINISHED) and waiting < _LONGEST:
            return ""
        return self._say(text)

    def rest(self) -> str:
        """What the end of the text adds: whole characters in front of an unfinished one."""
        if len(self._ids) == self._said:
            return ""
        return self._say(self._decode(self._ids).rstrip(_UNFINISHED))

    def _say(self, text: str) -> str:
        piece = text[len(self._known) :]
        # The last tokens stay in front of the next, so that the window does not grow.
        self._ids = self._ids[self._said :]
        self._said = len(self._ids)
        self._known = self._decode(self._ids)
        return piece


class Stops:
    """Holds back what may become one of the stop strings, across the borders of tokens."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings, self._held = tuple(strings), ""

    def feed(self, piece: str) -> tuple[str, str | None]:
        """(what may be said, the stop string that ended the text if one did)."""
        if not self.strings:
            return piece, None
        text = self._held + piece
        places = [(text.find(s), s) for s in self.strings if s in text]
        if places:
            at, ended = min(places, key=lambda found: found[0])
            self._held = ""
            return text[:at], ended
        kept = max((_overlap(text, s) for s in self.strings), default=0)
        said, self._held = text[: len(text) - kept], text[len(text) - kept :]
        return said, None

    def rest(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """How much of the text's end may be the beginning of the string."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
