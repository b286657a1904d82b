"""Families whose tokens stand at a position on three axes (M-RoPE): time, row and column.

A visual token stands at its place in the picture; a text behind a picture goes on at the larger of
its height and width, so that a row's positions run behind its columns by an offset of its own. The
library keeps that offset on the module; here it belongs to the row.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from models.decoder import TOWER
from models.hosted import HostedModel
from models.vision_language import VisionLanguage


class ThreeAxes(VisionLanguage):
    """A Qwen that sees."""

    def turned(
        self, hosted: HostedModel, ids: Sequence[int], read: Mapping[str, Tensor]
    ) -> tuple[Int[Tensor, "axes tokens"] | None, int]:
        """The library's own positions, computed for this row alone."""
        tokens = torch.tensor([ids])
        kinds = torch.isin(tokens, torch.tensor(sorted(self.image_ids(hosted)))).int()
        found, delta = hosted.modules[TOWER].model.get_rope_index(
            tokens, mm_token_type_ids=kinds, image_grid_thw=read["image_grid_thw"]
        )
        return found[:, 0], int(delta)
