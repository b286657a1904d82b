import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadPatch, BadSite
from models.patch import Clamp, Detour, Exit, LowRank, Patch, Shift

FC2 = "text_encoder.text_model.encoder.layers.0.mlp.fc2"


def low_rank(value, rank=1):
    return LowRank(site=FC2, left=torch.full((3, rank), value), right=torch.ones(rank, 2))


def shift(value):
    return Shift(site="text.block.0", vector=torch.full((3,), value))


def clamp(**changed):
    stated = {"encoder": torch.ones(3), "encoder_bias": 0.0, "decoder": torch.ones(3), "value": 1.0}
    return Clamp(site="text.block.0", **{**stated, **changed})


KINDS = [
    lambda v: low_rank(float(v)),
    lambda v: shift(float(v)),
    lambda v: clamp(value=float(v)),
    lambda v: Detour(tower="text", source=v + 2, target=v + 1),
    lambda _: Exit(tower="text", after=1),
]
drawn = st.lists(st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 3)), max_size=5)


def made(numbers):
    return Patch(tuple(KINDS[kind](value) for kind, value in numbers))


@given(a=drawn, b=drawn, c=drawn)
def test_patches_compose_as_an_algebra(a, b, c):
    a, b, c = made(a), made(b), made(c)
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a | Patch() == a == Patch() | a
    assert hash(a | b) == hash(b | a)
    assert [o.digest for o in a | b] == [o.digest for o in b | a]


def test_adding_the_same_change_twice_is_not_the_same_as_once():
    once = Patch((shift(1.0),))
    assert (once | once).digest != once.digest
    assert len((once | once).operations) == 2


def test_leaving_twice_at_one_place_is_leaving_once():
    once = Patch((Exit(tower="text", after=1),))
    assert once | once == once


def test_a_row_cannot_leave_a_tower_at_two_places():
    with pytest.raises(BadPatch, match="only once"):
        Patch((Exit(tower="text", after=1),)) | Patch((Exit(tower="text", after=2),))
    both = Patch((Exit(tower="text", after=1), Exit(tower="text_2", after=2)))
    assert len(both.operations) == 2


def test_two_detours_cannot_end_behind_one_block():
    first = Detour(tower="lm", source=3, target=1)
    with pytest.raises(BadPatch, match="detours"):
        Patch((first, Detour(tower="lm", source=4, target=1)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (low_rank(1.0), low_rank(2.0)),
        (low_rank(1.0, rank=1), low_rank(1.0, rank=2)),
        (shift(1.0), Shift(site="text.block.1", vector=torch.ones(3))),
        (shift(1.0), Shift(site="text.block.0", vector=torch.ones(3), positions=(1,))),
        (clamp(), clamp(value=2.0)),
        (clamp(), clamp(threshold=0.5)),
        (clamp(), clamp(mode="min")),
        (Exit(tower="text", after=None), Exit(tower="text", after=0)),
        (
            Detour(tower="lm", source=4, target=1),
            Detour(tower="lm", source=4, target=1, window=3),
        ),
    ],
)
def test_different_content_has_another_digest(one, other):
    assert Patch((one,)).digest != Patch((other,)).digest


def test_a_digest_is_the_same_in_another_process():
    code = (
        "import torch; from models.patch import *;"
        "shift = Shift(site='text.block.0', vector=torch.ones(3));"
        "print(Patch((shift, Exit(tower='text', after=1))).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    here = Patch((Exit(tower="text", after=1), shift(1.0)))
    assert done.stdout.strip() == here.digest


def test_tensors_are_kept_in_float32_whatever_they_come_in():
    half = Shift(site="text.block.0", vector=torch.ones(3, dtype=torch.bfloat16))
    assert half.vector.dtype == torch.float32
    assert half.digest == shift(1.0).digest


def test_it_knows_its_size():
    patch = Patch((low_rank(1.0, rank=2), low_rank(2.0), shift(1.0)))
    assert patch.rank == 3
    assert patch.sites == {FC2, "text.block.0"}
    assert patch.nbytes == 4 * ((3 * 2 + 2 * 2) + (3 + 2) + 3)
    assert patch.without(LowRank).sites == {"text.block.0"}
    assert not Patch()


@pytest.mark.parametrize(("source", "target", "window", "blocks", "wanted"), [
    (3, 1, 1, 4, ((3, 1),)),
    (3, 1, 3, 5, ((2, 0), (3, 1), (4, 2))),
    (3, 1, 3, 4, ((2, 0), (3, 1))),
    (3, 0, 3, 5, ((3, 0), (4, 1))),
])  # fmt: skip
def test_pairs_of_a_window_with_an_end_outside_the_tower_are_dropped(
    source, target, window, blocks, wanted
):
    detour = Detour(tower="lm", source=source, target=target, window=window)
    assert detour.pairs(blocks) == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LowRank(site="text.block.0", left=torch.ones(3, 1), right=torch.ones(1, 2)),
        lambda: LowRank(site=FC2, left=torch.ones(3, 2), right=torch.ones(1, 2)),
        lambda: LowRank(site=FC2, left=torch.ones(3), right=torch.ones(1, 2)),
        lambda: LowRank(site=FC2, left=torch.ones(3, 0), right=torch.ones(0, 2)),
        lambda: low_rank(float("nan")),
        lambda: shift(float("inf")),
        lambda: Shift(site=FC2, vector=torch.ones(3)),
        lambda: Shift(site="text.block.0", vector=torch.ones(3, 1)),
        lambda: Shift(site="text.block.0", vector=torch.ones(3), positions=(-1,)),
        lambda: Shift(site="text.block.0", vector=torch.ones(3), positions=(2, 1)),
        lambda: Shift(site="text.block.0", vector=torch.ones(3), positions=(1, 1)),
        lambda: Shift(site="text.block.0", vector=torch.ones(3), positions=()),
        lambda: clamp(decoder=torch.ones(4)),
        lambda: clamp(value=float("nan")),
        lambda: Detour(tower="lm", source=1, target=1),
        lambda: Detour(tower="lm", source=1, target=-1),
        lambda: Detour(tower="lm", source=3, target=1, window=2),
        lambda: Exit(tower="text", after=-1),
    ],
)
def test_data_that_cannot_be_a_patch_is_refused_at_once(wrong):
    with pytest.raises((BadPatch, BadSite)) as caught:
        wrong()
    assert caught.value.remedy


def at(positions):
    return Patch((Shift(site="lm.block.1", vector=torch.ones(3), positions=positions),))


def columns(patch):
    return [operation.positions for operation in patch]


@pytest.mark.parametrize(
    ("positions", "pieces"),
    [
        # A prompt of 6 tokens in pieces of 4 and 2, then two single tokens.
        ("all", [["all"], ["all"], ["all"], ["all"]]),
        ("prompt", [["all"], ["all"], [], []]),
        ("generated", [[], [], ["all"], ["all"]]),
        ("last", [[], [(1,)], [], []]),
        ("last_and_generated", [[], [(1,)], ["all"], ["all"]]),
        ((0, 3, 5, 7), [[(0, 3)], [(1,)], [], ["all"]]),
    ],
)
def test_a_piece_of_a_row_carries_what_of_a_patch_is_its_own(positions, pieces):
    patch = at(positions)
    forwards = [(0, 4), (4, 2), (6, 1), (7, 1)]
    assert [columns(patch.within(start, n, 6)) for start, n in forwards] == pieces


def test_a_piece_across_the_prompts_end_has_tokens_of_both_kinds():
    assert columns(at("last_and_generated").within(4, 4, 6)) == [(1, 2, 3)]
    assert columns(at("generated").within(4, 4, 6)) == [(2, 3)]
    assert columns(at("prompt").within(4, 4, 6)) == [(0, 1)]


NAMED = ("all", "prompt", "generated", "last", "last_and_generated")


def meant(positions, at, prompt):
    """Word for word what the names say of one token."""
    if isinstance(positions, tuple):
        return at in positions
    return {
        "all": True,
        "prompt": at < prompt,
        "generated": at >= prompt,
        "last": at == prompt - 1,
        "last_and_generated": at >= prompt - 1,
    }[positions]


@given(
    positions=st.one_of(
        st.sampled_from(NAMED),
        st.sets(st.integers(0, 30), min_size=1).map(lambda p: tuple(sorted(p))),
    ),
    start=st.integers(0, 32),
    tokens=st.integers(1, 12),
    prompt=st.integers(1, 24),
)
def test_the_tokens_of_a_piece_are_those_that_the_positions_name(positions, start, tokens, prompt):
    patch = at(positions)
    wanted = tuple(i for i in range(tokens) if meant(positions, start + i, prompt))
    for _ in range(2):
        found = columns(patch.within(start, tokens, prompt))
        assert found == ([] if not wanted else ["all"] if len(wanted) == tokens else [wanted])


def test_pieces_that_a_patch_changes_alike_are_one_object_and_so_are_all_behind_its_tuples():
    patch = at(tuple(range(1, 200))) | at((3, 40))
    assert patch.within(64, 16, 200) is patch.within(80, 16, 200) is patch.within(128, 16, 200)
    assert patch.within(200, 1, 200) is patch.within(512, 1, 200)
    assert not patch.within(200, 1, 200)
    odd = Patch(
        tuple(
            Shift(site="lm.block.1", vector=torch.ones(3), positions=(1, 300 + i)) for i in range(3)
        )
    )
    assert odd.within(400, 1, 200) is odd.within(401, 1, 200)
    assert columns(odd.within(301, 1, 200)) == ["all"]


def test_forms_that_are_kept_of_a_patch_are_few():
    patch = at(tuple(range(0, 4000, 3)))
    for start in range(0, 3000, 10):
        patch.within(start, 16 + start % 90, 4000)
    assert len(patch._forms) <= 64


def test_behind_the_prompt_a_patch_is_one_object_however_far_it_goes():
    patch = at("last_and_generated") | at("prompt")
    assert patch.within(6, 1, 6) is patch.within(50, 1, 7)
    assert columns(patch.within(6, 1, 6)) == ["all"]


def test_what_acts_on_all_tokens_is_left_as_it_is():
    edit = LowRank(site="lm.layers.0.mlp.down_proj", left=torch.ones(3, 1), right=torch.ones(1, 2))
    patch = Patch((edit, Exit(tower="lm", after=1))) | at("all")
    assert patch.within(0, 4, 6) is patch and patch.within(9, 1, 6) is patch


def test_visual_tokens_stand_in_the_prompt_and_keep_their_name_there():
    detour = Patch((Detour(tower="lm", source=3, target=1),))
    assert detour.within(0, 6, 6) is detour
    assert not detour.within(6, 1, 6)
