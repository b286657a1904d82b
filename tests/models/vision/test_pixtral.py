"""Pixtral and Mistral 3: rows of patches with marks between them, which are words."""

import pytest
import torch

from models.errors import BadPart
from models.pixtral_processor import PixtralProcessor
from tests.models.vision.equality import EqualsTheLibrary, asked, picture

BREAK, END = 12, 13


class MarkedRows(EqualsTheLibrary):
    def test_the_paper_patches_patches_and_breaks_and_not_the_end(self, hosted):
        for name in ("a tall one", "two pictures"):
            ids, shown = self.shown(hosted, name)
            sight = shown.sight
            besides = sorted(set(sight.reference) - set(sight.visual))
            assert besides and all(ids[column] == BREAK for column in besides)
            assert [ids[end - 1] for _, end in sight.spans] == [END] * sight.pictures
            assert not {column for column, token in enumerate(ids) if token == END}.intersection(
                sight.reference
            )

    def test_pictures_that_touch_are_two_spans(self, hosted):
        images = [picture(16, 16), picture(24, 16)]
        ids, sight = hosted.family.look(hosted, asked(*images, "a"), images)
        (first, middle), (second, end) = sight.spans
        assert middle == second and [ids[middle - 1], ids[end - 1]] == [END, END]
        assert [middle - first, end - second] == [2 * 3, 2 * 4]

    @pytest.mark.parametrize(("size", "rows", "columns"), [((24, 16), 2, 3), ((9, 25), 4, 2)])
    def test_a_picture_is_whole_rows_of_whole_patches(self, hosted, size, rows, columns):
        ids, sight = hosted.family.look(hosted, asked(picture(*size), "a"), [picture(*size)])
        (first, end), marks = sight.spans[0], [BREAK] * (rows - 1) + [END]
        assert ids[first:end] == [t for mark in marks for t in [10] * columns + [mark]]

    def test_a_prompt_begins_once(self, hosted):
        """Its template writes <s>, and so would its tokenizer."""
        for name in ("one picture", "a text alone"):
            assert self.shown(hosted, name)[0][:2] == [1, 3]

    def test_the_stream_at_marks_is_their_embedding(self, hosted):
        ids, shown = self.shown(hosted, "one picture")
        tokens = torch.tensor([ids])
        places = torch.arange(len(ids))[None]
        stream = hosted.family.embed(hosted, tokens, places, [shown])[0]
        marks = [column for column, token in enumerate(ids) if token in {BREAK, END}]
        with torch.inference_mode():
            wanted = hosted.family.decoder(hosted).embed(tokens[0, marks])
        assert len(marks) == 2 and torch.equal(stream[marks], wanted)

    def test_its_processor_is_read_from_what_it_wrote(self, hosted, tmp_path):
        processor = hosted.parts["eyes"].processor
        processor.save_pretrained(tmp_path)
        again = PixtralProcessor.from_pretrained(tmp_path, local_files_only=True, backend="pil")
        assert again.to_dict() == processor.to_dict()
        assert again.to_dict()["processor_class"] == "PixtralProcessor"
        assert again.side == 8


class TestPixtral(MarkedRows):
    kind = "pixtral"


class TestMistral3(MarkedRows):
    kind = "mistral3"

    def test_one_token_alone_is_refused_and_two_pictures_of_one_are_seen(self, hosted):
        """The library drops an axis of a single token, and stumbles over what is left."""
        dot = picture(4, 4)
        with pytest.raises(BadPart, match="enlarge"):
            hosted.family.look(hosted, asked(dot, "a"), [dot])
        _, sight = hosted.family.look(hosted, asked(dot, dot, "a"), [dot, dot])
        assert len(hosted.family.see(hosted, sight).features) == 2

    def test_four_patches_are_a_token(self, hosted):
        shown = self.shown(hosted, "a wide one")[1]
        height, width = shown.sight.inputs["image_sizes"][0].tolist()
        patch = hosted.modules["lm"].config.vision_config.patch_size
        assert len(shown.sight.visual) == height // patch * (width // patch) // 4
