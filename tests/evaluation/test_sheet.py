import numpy as np

from evaluation.sheet import BAD, GOOD, Cell, Strip, contact_sheet

RED = np.full((16, 16, 3), (250, 10, 20), dtype=np.uint8)


def pixels(sheet):
    return {tuple(p) for p in np.asarray(sheet).reshape(-1, 3).tolist()}


def test_every_picture_is_on_the_sheet_at_its_size():
    sheet = contact_sheet(
        "t", ["a", "b"], [Strip(label="row", cells=(Cell(picture=RED), Cell(picture=RED)))], side=64
    )
    assert (np.asarray(sheet) == (250, 10, 20)).all(-1).sum() == 2 * 64 * 64


def test_the_frame_says_what_the_judge_thought():
    def frame(good):
        cells = (Cell(picture=RED, caption="p", good=good),)
        return pixels(contact_sheet("t", ["a"], [Strip(label="row", cells=cells)]))

    assert GOOD in frame(True) and BAD not in frame(True)
    assert BAD in frame(False) and GOOD not in frame(False)
    assert not {GOOD, BAD} & frame(None)


def test_a_picture_that_was_not_kept_leaves_its_place_empty():
    sheet = contact_sheet("t", ["a"], [Strip(label="r", cells=(Cell(picture=None),))])
    assert (250, 10, 20) not in pixels(sheet)


def test_long_labels_stay_in_their_column():
    long = "a very long label that goes on and on " * 4
    cells = tuple(Cell(picture=RED, caption=long) for _ in range(3))
    wide = contact_sheet("t", ["a"], [Strip(label=long, cells=cells)])
    short = contact_sheet(
        "t", ["a"], [Strip(label="", cells=tuple(Cell(picture=RED) for _ in range(3)))]
    )
    assert wide.size == short.size
    assert (np.asarray(wide)[:, -12:] == np.asarray(short)[:, -12:]).all()


def test_a_picture_that_is_not_square_keeps_its_shape():
    wide = np.full((16, 32, 3), (250, 10, 20), dtype=np.uint8)
    sheet = contact_sheet("t", ["a"], [Strip(label="r", cells=(Cell(picture=wide),))], side=64)
    assert (np.asarray(sheet) == (250, 10, 20)).all(-1).sum() == 64 * 32


def test_a_title_of_any_length_and_many_lines_stays_on_the_sheet():
    strips = [Strip(label="r", cells=(Cell(picture=RED),))]
    long = contact_sheet(
        "a very long prompt\nof many lines " * 1000, ["a"], strips, note="n\n" * 99
    )
    assert long.size == contact_sheet("t", ["a"], strips).size
    assert (np.asarray(long)[:, -12:] == np.asarray(long)[0, 0]).all()
