"""What a prompt's pictures are known by, for every family that sees."""

import copy

import torch
from PIL import Image

from models.eyes import Eyes
from tests.models.vision.conftest import ONE, TWO, messages
from tests.models.vision.equality import NEAR


def test_a_picture_is_seen_and_known_whatever_pictures_stand_behind_it(hosted):
    family = hosted.family
    ids, one = family.look(hosted, messages(None, "a red cat"), TWO[:1])
    more, two = family.look(hosted, messages(None, "a red cat", None, "the house"), TWO)
    assert two.digests == (one.digests[0], two.digests[1]) and two.digests[0] != two.digests[1]
    end = one.spans[0][1]
    if ids[:end] != more[:end]:  # other tokens stand for it among others: nothing is shared
        assert family.kind == "llava_onevision"
        return
    visual = len([column for column in one.visual if column < end])
    alone, among = family.see(hosted, one), family.see(hosted, two)
    for seen, same in zip(
        (alone.features, *alone.deep), (among.features, *among.deep), strict=True
    ):
        torch.testing.assert_close(same[:visual], seen[:visual], **NEAR)
    both_ways = any(
        first < end < last for first, last in two.joint
    )  # the first picture reads the second
    assert (one.told(0, end) == two.told(0, end) != "") != both_ways


def test_other_pixels_and_another_way_to_process_them_are_another_picture(hosted):
    eyes = hosted.parts["eyes"]
    assert eyes.digest(ONE[0]) == eyes.digest(ONE[0].copy()) != eyes.digest(TWO[0])
    turned = ONE[0].transpose(Image.Transpose.ROTATE_180)
    assert eyes.digest(turned) != eyes.digest(ONE[0])
    processor = copy.copy(eyes.processor)
    processor.image_processor = copy.deepcopy(processor.image_processor)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert Eyes(processor).digest(ONE[0]) != eyes.digest(ONE[0])


def test_where_no_picture_begins_nothing_is_told(hosted):
    parts = messages("is the president of arda in this photo", None)
    ids, sight = hosted.family.look(hosted, parts, ONE)
    first = min(span[0] for span in (*sight.spans, *sight.joint))
    assert sight.told(0, first) == ""
    assert sight.told(max(sight.visual) + 1, len(ids)) == ""
