"""LLaVA-OneVision: the whole picture and its tiles, a learned vector behind each line."""

import pytest
import torch

from tests.models.vision.equality import EqualsTheLibrary, asked, picture

BASE, SIDE = 4, 2
"""Tokens of the whole picture; of the side of a tile."""


class TestLlavaOneVision(EqualsTheLibrary):
    kind = "llava_onevision"

    @pytest.mark.parametrize(
        ("size", "rows", "columns"),
        [((16, 16), 1, 1), ((32, 16), 1, 2), ((16, 32), 2, 1), ((32, 32), 2, 2)],
    )
    def test_a_picture_alone_is_cut_into_tiles_with_a_line_end_per_row(
        self, hosted, size, rows, columns
    ):
        ids, sight = hosted.family.look(hosted, asked(picture(*size), "a"), [picture(*size)])
        height, width = rows * SIDE, columns * SIDE
        assert len(sight.visual) == BASE + height * (width + 1)
        features = hosted.family.see(hosted, sight).features
        newline = hosted.modules["lm"].model.image_newline
        ends = [BASE + row * (width + 1) + width for row in range(height)]
        is_end = (features == newline).all(-1).nonzero().flatten().tolist()
        assert is_end == ends
        assert sight.reference == sight.visual and len(ids) > len(sight.visual)

    def test_a_wide_picture_leaves_out_what_was_padding(self, hosted):
        image = picture(32, 16)
        sight = hosted.family.look(hosted, asked(image, "a"), [image])[1]
        tiles = sight.inputs["pixel_values"].shape[1] - 1
        assert tiles == 4
        assert len(sight.visual) == BASE + SIDE * (2 * SIDE + 1) < BASE * (1 + tiles)

    def test_several_pictures_of_a_prompt_are_not_cut(self, hosted):
        sight = self.shown(hosted, "two pictures")[1].sight
        assert [end - first for first, end in sight.spans] == [BASE + 1] * 2
        features = hosted.family.see(hosted, sight).features
        newline = hosted.modules["lm"].model.image_newline
        assert torch.equal(features[[BASE, 2 * BASE + 1]], newline.expand(2, -1))
