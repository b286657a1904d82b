"""Families that write a picture as rows of placeholders with marks behind them: Pixtral's kin."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from models.eyes import Eyes
from models.hosted import HostedModel
from models.pixtral_processor import PixtralProcessor
from models.sight import Span, spans_of
from models.vision_language import VisionLanguage


class MarkedRows(VisionLanguage):
    """A break stands behind each row of patches, an end behind the last."""

    def tools(self, folder: Path) -> Mapping[str, Any]:
        """Its processor; OSError of the library if a part is missing."""
        processor = PixtralProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        return {"eyes": Eyes(processor)}

    def reference_ids(self, hosted: HostedModel) -> frozenset[int]:
        """Patches and breaks, not the ends (Nikankin et al. 2025, their code)."""
        processor = hosted.parts["eyes"].processor
        return self.image_ids(hosted) | {processor.image_break_token_id}

    def spans(
        self, hosted: HostedModel, ids: Sequence[int], visual: Sequence[int]
    ) -> tuple[Span, ...]:
        """Each picture's columns up to its end mark, breaks included."""
        processor = hosted.parts["eyes"].processor
        marks = {processor.image_break_token_id, processor.image_end_token_id}
        whole = set(visual) | {column for column, token in enumerate(ids) if token in marks}
        found = []
        for first, end in spans_of(sorted(whole)):
            cuts = [c + 1 for c in range(first, end) if ids[c] == processor.image_end_token_id]
            edges = sorted({first, *cuts, end})
            found += pairwise(edges)
        return tuple(found)


def vision_tower_of(folder: Path) -> str | None:
    """The kind of the vision tower that `config.json` names."""
    stated = json.loads((folder / "config.json").read_text())
    return stated.get("vision_config", {}).get("model_type")
