"""Idefics3 and SmolVLM: a picture is tiles, each a run of placeholders behind its own mark."""

from tests.models.vision.equality import SEEING, EqualsTheLibrary, pictures


class Tiles(EqualsTheLibrary):
    def test_a_picture_is_its_tiles_and_then_the_whole_of_it(self, hosted):
        """A tile is 4 tokens; wide and tall pictures are two tiles, square ones four."""
        tokenizer = hosted.parts["eyes"].processor.tokenizer
        for name in SEEING:
            ids, shown = self.shown(hosted, name)
            for (first, end), one in zip(
                shown.sight.spans, pictures(self.questions[name]), strict=True
            ):
                tiles = 4 if one.width == one.height else 2
                spelled = tokenizer.convert_ids_to_tokens(ids[first - 1 : end])
                assert spelled[0] == "<row_1_col_1>"
                assert spelled[-5:] == ["<global-img>", *["<image>"] * 4]
                assert spelled.count("<image>") == 4 * (tiles + 1)

    def test_only_placeholders_are_visual_and_they_are_the_reference(self, hosted):
        for name in SEEING:
            ids, shown = self.shown(hosted, name)
            assert shown.sight.reference == shown.sight.visual
            assert len({ids[column] for column in shown.sight.visual}) == 1
            assert shown.sight.joint == ()


class TestIdefics3(Tiles):
    kind = "idefics3"

    def test_a_conversation_begins_with_one_mark(self, hosted):
        ids, _ = self.shown(hosted, SEEING[0])
        assert ids.count(hosted.parts["eyes"].processor.tokenizer.bos_token_id) == 1


class TestSmolVLM(Tiles):
    kind = "smolvlm"
