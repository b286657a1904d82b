"""Qwen2.5-VL: three axes that belong to the row, whatever stands on the module."""

from dataclasses import replace

import torch

from models.sight import Shown
from tests.models.vision.equality import EqualsTheLibrary


class TestQwen25VL(EqualsTheLibrary):
    kind = "qwen2_5_vl"

    def test_the_paper_patches_the_pads_and_not_the_marks_around_them(self, hosted):
        ids, shown = self.shown(hosted, "two pictures")
        marks = hosted.parts["eyes"].processor.tokenizer.convert_tokens_to_ids(
            ["<|vision_start|>", "<|vision_end|>"]
        )
        assert shown.sight.reference == shown.sight.visual
        for first, end in shown.sight.spans:
            assert [ids[first - 1], ids[end]] == marks

    def test_a_text_behind_a_picture_goes_on_at_its_larger_side(self, hosted):
        for name in ("a wide one", "a tall one", "two pictures"):
            ids, shown = self.shown(hosted, name)
            wanted, column, at = [], 0, 0
            sides = (shown.sight.inputs["image_grid_thw"] // torch.tensor([1, 2, 2])).tolist()
            for (first, end), (_, height, width) in zip(shown.sight.spans, sides, strict=True):
                wanted += [[at + i] * 3 for i in range(first - column)]
                at += first - column
                wanted += [[at, at + y, at + x] for y in range(height) for x in range(width)]
                at, column = at + max(height, width), end
            wanted += [[at + i] * 3 for i in range(len(ids) - column)]
            assert shown.sight.turns.T.tolist() == wanted
            assert shown.sight.offset == wanted[-1][0] + 1 - len(ids) < 0

    def test_an_offset_that_another_request_left_on_the_module_is_not_read(self, hosted):
        model = hosted.modules["lm"].model
        ids, shown = self.shown(hosted, "a tall one")
        wanted = hosted.family.logits(hosted, torch.tensor([ids]), [shown])
        left, model.rope_deltas = model.rope_deltas, torch.tensor([[77]])
        found = hosted.family.logits(hosted, torch.tensor([ids]), [shown])
        model.rope_deltas = left
        assert torch.equal(found, wanted)

    def test_without_the_axes_the_answer_is_another(self, hosted):
        ids, shown = self.shown(hosted, "a wide one")
        flat = Shown(sight=replace(shown.sight, turns=None, offset=0), seen=shown.seen)
        found = [
            hosted.family.logits(hosted, torch.tensor([ids]), [own])[0, -1] for own in (shown, flat)
        ]
        assert float((found[0] - found[1]).abs().max()) > 0.1
