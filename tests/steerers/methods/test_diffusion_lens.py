import pytest

from models.errors import BadLayer, MethodNotApplicable, UnknownTower
from models.family import FAMILIES
from models.patch import Exit, Patch
from steerers.methods.diffusion_lens import DiffusionLens


def test_a_layer_is_left_behind_the_block_before_it(tiny_sd):
    [first] = DiffusionLens(layer=0).plan(tiny_sd)
    [third] = DiffusionLens(layer=3).plan(tiny_sd)
    assert isinstance(first, Exit) and first.after is None
    assert isinstance(third, Exit) and third.after == 2


def test_the_ordinary_layer_needs_no_patch(tiny_sd, tiny_sdxl):
    assert DiffusionLens(layer=4).plan(tiny_sd) == Patch()
    assert DiffusionLens(layer=3, encoder="text_2").plan(tiny_sdxl) == Patch()


def test_the_first_encoder_is_looked_at_unless_another_is_named(tiny_sdxl):
    towers = [
        next(iter(DiffusionLens(layer=1, encoder=name).plan(tiny_sdxl))).tower
        for name in (None, "text_2")
    ]
    assert towers == ["text", "text_2"]


def test_what_cannot_be_looked_at_is_refused(tiny_sd, tiny_sdxl, monkeypatch):
    with pytest.raises(BadLayer, match="layer 9"):
        DiffusionLens(layer=9).plan(tiny_sd)
    with pytest.raises(BadLayer, match="layer 4"):
        DiffusionLens(layer=4).plan(tiny_sdxl)
    with pytest.raises(UnknownTower):
        DiffusionLens(layer=0, encoder="text_3").plan(tiny_sd)
    reason = "it reads a stack of layers."
    monkeypatch.setattr(tiny_sd.family, "applies", {"diffusion_lens": reason})
    with pytest.raises(MethodNotApplicable, match="stack of layers"):
        DiffusionLens(layer=0).plan(tiny_sd)


def test_the_first_encoder_that_can_be_looked_at_is_the_default(tiny_sdxl, monkeypatch):
    family = FAMILIES["stable_diffusion_xl"]
    second = family.lenses(tiny_sdxl)["text_2"]
    monkeypatch.setattr(
        family, "lenses", lambda _: {"text": "it is read as one vector.", "text_2": second}
    )
    assert family.lens(tiny_sdxl) is second
    with pytest.raises(MethodNotApplicable, match="one vector"):
        family.lens(tiny_sdxl, "text")


def test_only_the_references_noise_depends_on_the_place_in_a_sweep():
    places = range(3)
    assert [DiffusionLens(layer=1).draw(i) for i in places] == [0, 0, 0]
    assert [DiffusionLens(layer=1, noise="per_layer").draw(i) for i in places] == [0, 1, 2]
