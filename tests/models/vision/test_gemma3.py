"""Gemma 3: a picture's tokens see each other both ways, inside the window of their layer."""

import pytest
import torch

from models.sight import Shown, spans_of
from tests.models.vision.equality import NEAR, SEEING, EqualsTheLibrary, asked, picture


class TestGemma3(EqualsTheLibrary):
    kind = "gemma3"

    def test_the_placeholder_is_beyond_the_vocabulary_and_is_never_embedded(self, hosted):
        assert hosted.modules["lm"].config.image_token_id == hosted.family.vocab_size(hosted)

    def test_the_reference_begins_at_the_mark_before_a_picture_and_leaves_out_the_one_behind(
        self, hosted
    ):
        config = hosted.modules["lm"].config
        for name in SEEING:
            ids, shown = self.shown(hosted, name)
            wanted = [
                column for first, end in shown.sight.spans for column in range(first - 1, end)
            ]
            assert shown.sight.reference == tuple(wanted)
            begins = {ids[first - 1] for first, _ in shown.sight.spans}
            ends = {ids[end] for _, end in shown.sight.spans}
            assert (begins, ends) == ({config.boi_token_id}, {config.eoi_token_id})

    def test_pictures_are_joint_where_the_processor_says_so(self, hosted):
        for name in SEEING:
            kinds = self.read(hosted, name)["token_type_ids"][0].tolist()
            wanted = spans_of([column for column, kind in enumerate(kinds) if kind == 1])
            assert self.shown(hosted, name)[1].sight.joint == wanted

    @pytest.mark.parametrize("name", SEEING)
    def test_read_causally_it_would_say_something_else(self, hosted, name):
        assert self.without_joint(hosted, name) > 0.1

    def test_without_token_types_the_library_is_silently_causal(self, hosted):
        read = self.read(hosted, SEEING[0])
        del read["token_type_ids"]
        with torch.inference_mode():
            causal = hosted.modules["lm"](**read).logits[0]
        moved = causal - self.library(hosted, SEEING[0])
        assert float(moved.abs().max()) > 0.3

    def test_pictures_do_not_see_past_the_window_of_their_layer(self, hosted, monkeypatch):
        ids, shown = self.shown(hosted, SEEING[0])
        wanted = self.library(hosted, SEEING[0])
        monkeypatch.setattr(type(hosted.family), "joint_within_window", False)
        wrong = hosted.family.logits(hosted, torch.tensor([ids]), [shown])[0]
        assert float((wrong - wanted).abs().max()) > 0.1

    def test_crops_are_pictures_of_their_own(self, hosted, monkeypatch):
        processor = hosted.parts["eyes"].processor
        asks = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}
        cropped = {**processor.images_kwargs, **asks}
        monkeypatch.setattr(processor, "images_kwargs", cropped, raising=False)
        wide = picture(64, 20, 9)
        monkeypatch.setitem(self.questions, "a cropped one", [wide, "is a dog"])
        ids, sight = hosted.family.look(hosted, asked(wide, "is a dog"), [wide])
        assert len(sight.joint) > 2 and len(sight.spans) == len(sight.joint)
        shown = Shown(sight=sight, seen=hosted.family.see(hosted, sight))
        found = hosted.family.logits(hosted, torch.tensor([ids]), [shown])[0]
        torch.testing.assert_close(found, self.library(hosted, "a cropped one"), **NEAR)
