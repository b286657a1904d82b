import pytest

from models.errors import BadLayer
from models.family import Lens
from service.errors import BadRequest, SeenThroughLens, TooManyPictures
from service.lens import layers_of
from service.limits import check_sweep
from service.recipe import Recipe
from service.schema import LayerRange
from service.settings import Limits

LENS = Lens(tower="text", ordinary=8, norm="final norm")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        ([8, 0, 3], (8, 0, 3)),
        (LayerRange(), (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        (LayerRange(step=4), (0, 4, 8)),
        (LayerRange(start=1, stop=8, step=3), (1, 4, 7)),
        (LayerRange(start=8), (8,)),
    ],
)
def test_layers_are_a_list_a_range_or_all(asked, meant):
    assert layers_of(asked, LENS) == meant


@pytest.mark.parametrize(
    "asked",
    [[9], [-1], [0, 99], LayerRange(start=9), LayerRange(stop=10), LayerRange(start=-1),
     LayerRange(stop=0), LayerRange(stop=10**15)],
)  # fmt: skip
def test_a_layer_that_is_not_there_is_refused_with_the_range(asked):
    with pytest.raises(BadLayer) as refused:
        layers_of(asked, LENS)
    assert "0" in refused.value.remedy and "8" in refused.value.remedy


@pytest.mark.parametrize(
    "asked", [[1, 1], LayerRange(start=3, stop=2), LayerRange(start=3, stop=3)]
)
def test_no_layer_at_all_and_one_twice_are_refused(asked):
    with pytest.raises(BadRequest):
        layers_of(asked, LENS)


def test_layers_times_seeds_are_bounded():
    check_sweep(10, 10, Limits(lens_pictures=100))
    with pytest.raises(TooManyPictures, match="11 layers with 10 seeds each are 110 pictures"):
        check_sweep(11, 10, Limits(lens_pictures=100))


def test_a_picture_of_a_layer_is_not_drawn_again_as_an_ordinary_one():
    seen = {"encoder": "text", "layer": 3, "beside": "none", "draw": 0}
    stated = {"prompt": "a", "seed": 7, "steps": 3, "guidance_scale": 7.5, "size": "8x8"}
    with pytest.raises(SeenThroughLens, match="layer 3"):
        Recipe(model="m", lens=seen, **stated).request()
    assert Recipe(model="m", **stated).request()["seed"] == 7
