import pytest
import torch

from models.errors import MethodNotApplicable
from models.family import FAMILIES, Conditioning


def test_families_are_found_by_being_there():
    assert {"stable_diffusion", "stable_diffusion_xl"} <= set(FAMILIES)
    assert all(FAMILIES[kind].kind == kind for kind in FAMILIES)
    assert len(FAMILIES) == len(list(FAMILIES))


def test_a_method_that_does_not_apply_is_refused_with_the_reason():
    family = FAMILIES["stable_diffusion"]
    family.check_method("refact")
    with pytest.raises(MethodNotApplicable, match="no visual tokens"):
        family.check_method("back_patch")
    with pytest.raises(MethodNotApplicable, match="nobody has said"):
        family.check_method("astrology")


def test_rows_of_conditioning_stand_side_by_side_in_the_order_given():
    rows = [Conditioning(torch.full((1, 2, 3), float(i)), torch.full((1, 4), -1.0)) for i in (2, 5)]
    both = Conditioning.stack(rows)
    assert both.sequence[:, 0, 0].tolist() == [2.0, 5.0]
    assert both.sizes is None
    assert both.nbytes == 4 * (2 * 2 * 3 + 2 * 4)
    assert both.row(1).sequence.tolist() == rows[1].sequence.tolist()


def test_rows_of_different_layouts_are_not_stacked():
    with_pooled = Conditioning(torch.zeros(1, 2, 3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="layout"):
        Conditioning.stack([with_pooled, Conditioning(torch.zeros(1, 2, 3))])
