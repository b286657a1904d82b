import torch

from models.patch import Clamp, Detour, Exit, LowRank, Patch, Shift
from models.plan import MODES, pack

FC2 = "text_encoder.text_model.encoder.layers.0.mlp.fc2"
BLOCKS = {"text": 4}


def low_rank(rank, value=1.0):
    return LowRank(site=FC2, left=torch.full((3, rank), value), right=torch.ones(rank, 2))


def test_a_plan_without_operations_holds_no_tables():
    plan = pack([Patch(), Patch()], BLOCKS)
    assert plan.size == 2
    assert not (plan.low_ranks or plan.moves or plan.exits or plan.detours or plan.planned)


def test_only_rows_that_carry_something_are_in_a_table():
    plan = pack([Patch(), Patch((low_rank(2),)), Patch(), Patch((low_rank(1),))], BLOCKS)
    (table,) = plan.low_ranks[FC2]
    assert table.rows == (1, 3)
    assert table.index.tolist() == [1, 3]


def test_padding_of_ranks_changes_nothing():
    edits = [low_rank(2, 0.5), low_rank(1, 2.0)]
    (table,) = pack([Patch(tuple(edits))], BLOCKS).low_ranks[FC2]
    assert table.left.shape == (1, 3, 4)
    wanted = sum(edit.left @ edit.right for edit in edits)
    assert torch.equal(table.left[0] @ table.right[0], wanted)


def test_rows_of_unlike_rank_do_not_share_a_table():
    patches = [Patch((low_rank(rank),)) for rank in (1, 4, 5, 8, 9)]
    found = pack(patches, BLOCKS).low_ranks[FC2]
    assert [(t.rows, t.left.shape[2]) for t in found] == [((0, 1), 4), ((2, 3), 8), ((4,), 16)]


def test_a_shift_is_a_feature_whose_amount_is_one():
    shift = Shift(site="text.block.1", vector=torch.arange(3.0), positions=(0, 2))
    other = Shift(site="text.block.1", vector=torch.ones(3), positions=(1,))
    patch = Patch((shift, other))
    (table,) = pack([patch], BLOCKS).moves["text.block.1"]
    assert [MODES[kind] for kind in table.kind[0].tolist()] == ["shift", "shift", "none", "none"]
    assert {tuple(v.tolist()) for v in table.decoder[0, :2]} == {(0.0, 1.0, 2.0), (1.0, 1.0, 1.0)}
    assert set(table.columns[0]) == {(0, 2), (1,)}


def test_shifts_of_the_same_tokens_are_one_vector_a_place():
    first, second, other = (
        Shift(site="text.block.1", vector=vector, positions=positions)
        for vector, positions in (
            (torch.arange(3.0), (0, 2)),
            (torch.ones(3), (0, 2)),
            (torch.full((3,), 5.0), "last"),
        )
    )
    patches = [Patch((first, second)), Patch(), Patch((other,))]
    plan = pack(patches, BLOCKS, [{}, {}, {"last": (4,)}])
    assert not plan.moves
    assert not plan.shifts
    spots = plan.spots["text.block.1"]
    assert (spots.rows, spots.columns, spots.length) == ((0, 2), ((0, 2), (4,)), 5)
    assert [at.tolist() for at in spots.at] == [[0, 0, 2], [0, 2, 4]]
    assert spots.vector.tolist() == [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]
    assert plan.planned == {(0, "text.block.1"): 2, (2, "text.block.1"): 1}
    (kept,) = plan.ahead([2]).spots.values()
    assert (kept.rows, kept.columns) == ((0,), ((4,),))
    assert [at.tolist() for at in kept.at] == [[0], [4]]
    assert kept.vector.tolist() == [[5.0, 5.0, 5.0]]


def test_named_positions_are_the_rows_own():
    clamp = Clamp(
        site="text.block.1",
        encoder=torch.ones(3),
        encoder_bias=0.0,
        decoder=torch.ones(3),
        value=1.0,
        positions="last",
    )
    plan = pack([Patch((clamp,))] * 2, BLOCKS, [{"last": (4,)}, {"last": (6,)}])
    assert plan.moves["text.block.1"][0].columns == (((4,),), ((6,),))


def test_what_is_planned_is_known_before_the_forward():
    patch = Patch(
        (
            low_rank(1),
            Shift(site="text.block.1", vector=torch.ones(3), positions=(0, 2)),
            Shift(site="text.block.2", vector=torch.ones(3)),
            Exit(tower="text", after=1),
            Detour(tower="text", source=3, target=0, positions=(1, 2, 3), window=3),
        )
    )
    assert pack([Patch(), patch], BLOCKS).planned == {
        (1, FC2): 0,
        (1, "text.block.1"): 2,
        (1, "text.block.2"): 0,
        (1, "text.exit"): 0,
        (1, "text.block.0:detour"): 3,
    }


def test_leaving_behind_the_last_block_is_no_change_and_plans_none():
    assert not pack([Patch((Exit(tower="text", after=3),))], BLOCKS).planned


def test_shifts_of_whole_rows_are_one_vector_a_row():
    first, second = (
        Shift(site="text.block.1", vector=v) for v in (torch.arange(3.0), torch.ones(3))
    )
    plan = pack([Patch((first, second)), Patch(), Patch((second,))], BLOCKS)
    assert not plan.moves
    shifts = plan.shifts["text.block.1"]
    assert shifts.rows == (0, 2)
    assert shifts.vector.tolist() == [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
    assert plan.planned == {(0, "text.block.1"): 0, (2, "text.block.1"): 0}


def test_the_sum_of_a_rows_shifts_is_the_same_in_any_company_and_order():
    generator = torch.Generator().manual_seed(0)
    few = [
        Shift(site="text.block.1", vector=10.0**k * torch.randn(64, generator=generator))
        for k in range(5)
    ]
    alone = pack([Patch(tuple(few))], BLOCKS).shifts["text.block.1"].vector[0]
    company = [Patch((few[0],)), Patch(tuple(reversed(few))), Patch(tuple(few[1:]))]
    assert torch.equal(pack(company, BLOCKS).shifts["text.block.1"].vector[1], alone)


def test_a_row_that_also_clamps_reads_its_stream_once_for_both():
    shift = Shift(site="text.block.1", vector=torch.ones(3))
    clamp = Clamp(
        site="text.block.1",
        encoder=torch.ones(3),
        encoder_bias=0.0,
        decoder=torch.ones(3),
        value=1.0,
    )
    plan = pack([Patch((shift, clamp)), Patch((shift,))], BLOCKS)
    assert plan.moves["text.block.1"][0].rows == (0,)
    assert plan.shifts["text.block.1"].rows == (1,)
