"""Families that cut a picture into tiles: a run of placeholders a tile, a view of the whole last.

A picture is all its runs with the marks between them, up to the one behind the mark of the whole.
"""

from collections.abc import Sequence

from models.hosted import HostedModel
from models.sight import Span, spans_of
from models.vision_language import VisionLanguage

WHOLE = "<global-img>"
"""Stands before the view of the whole picture."""


class Tiled(VisionLanguage):
    """A family whose pictures are several runs of placeholders (Idefics3, SmolVLM)."""

    def spans(
        self, hosted: HostedModel, ids: Sequence[int], visual: Sequence[int]
    ) -> tuple[Span, ...]:
        """Each picture's columns, the marks of its tiles between them included."""
        whole = hosted.parts["eyes"].processor.tokenizer.convert_tokens_to_ids(WHOLE)
        found: list[Span] = []
        begun: int | None = None
        for first, end in spans_of(visual):
            begun = first if begun is None else begun
            if ids[first - 1] == whole:
                found.append((begun, end))
                begun = None
        return tuple(found)
