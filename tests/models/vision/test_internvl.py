"""InternVL: a picture's tiles stand in one run between two marks."""

from tests.models.vision.equality import QUESTIONS, SEEING, EqualsTheLibrary, picture


class TestInternVL(EqualsTheLibrary):
    kind = "internvl"
    questions = {**QUESTIONS, "a large one": [picture(64, 64, 6), "is a dog"]}  # noqa: RUF012

    def test_a_picture_stands_between_its_marks_and_they_are_not_visual(self, hosted):
        processor = hosted.parts["eyes"].processor
        for name in SEEING:
            ids, shown = self.shown(hosted, name)
            assert shown.sight.reference == shown.sight.visual and shown.sight.joint == ()
            for first, end in shown.sight.spans:
                assert ids[first - 1] == processor.start_image_token_id
                assert ids[end] == processor.end_image_token_id

    def test_larger_pictures_and_longer_ones_are_more_tiles(self, hosted):
        wanted = {"one picture": 1, "a wide one": 4, "a tall one": 4, "a large one": 5}
        for name, tiles in wanted.items():
            assert len(self.shown(hosted, name)[1].sight.visual) == 4 * tiles, name
