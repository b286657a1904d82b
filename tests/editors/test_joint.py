import itertools

import pytest
import torch

from editors.delta import Delta, Factors
from editors.errors import EditsConflict, MixedLayers
from editors.joint import Named, compose
from editors.rank_one import factor, joint, solve_keys

INNER, OUT = 64, 10


def site(block):
    return f"text_encoder.text_model.encoder.layers.{block}.mlp.fc2"


def edit(seed, key=None, block=1, value=None):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(
        1000, INNER, generator=torch.Generator().manual_seed(99), dtype=torch.float64
    )
    k = torch.randn(1, INNER, generator=generator).double() if key is None else key
    d = torch.randn(1, OUT, generator=generator).double() if value is None else value
    a = solve_keys(k, factor(sample.mT @ sample / 1000))
    left, right = joint(k, a, d)
    factors = Factors(*(t.float() for t in (left, right, k, a, d)))
    return Named(name=f"e{seed}", delta=Delta({"n": seed}, {site(block): factors}))


def written(composition, key):
    (operation,) = composition.patch
    return operation.left.double() @ (operation.right.double() @ key)


def test_every_edit_is_exact_at_its_own_key_whatever_is_added():
    edits = [edit(i) for i in range(8)]
    for n in range(1, 9):
        composed = compose(edits[:n])
        for e in edits[:n]:
            f = e.delta.factors[site(1)]
            off = written(composed, f.keys[0].double()) - f.values[0]
            assert float(off.norm() / f.values.norm()) < 1e-4


def test_the_order_of_a_request_does_not_change_a_bit():
    edits = [edit(i) for i in range(4)]
    digests = {compose(order).patch.digest for order in itertools.permutations(edits)}
    assert len(digests) == 1


def test_one_edit_alone_is_itself():
    alone = edit(1)
    assert compose([alone]).patch == alone.delta.patch()


def test_no_edits_change_nothing():
    assert not compose([]).patch


def test_edits_of_two_blocks_are_refused():
    with pytest.raises(MixedLayers, match=r"e1 at .*layers\.1\..*e2 at .*layers\.2\."):
        compose([edit(1), edit(2, block=2)])


def test_nearly_parallel_keys_with_different_values_are_refused_with_the_pair():
    first = edit(1)
    near = first.delta.factors[site(1)].keys.double() + 1e-4 * torch.randn(1, INNER).double()
    with pytest.raises(EditsConflict, match=r"e1|e2"):
        compose([first, edit(2, key=near)])


def test_overlap_that_can_be_solved_is_warned_about():
    first = edit(1)
    key = first.delta.factors[site(1)].keys.double()
    beside = edit(
        2,
        key=key + 0.45 * torch.randn(1, INNER, generator=torch.Generator().manual_seed(7)).double(),
    )
    composed = compose([first, beside])
    assert composed.vif > 4 and composed.warnings
