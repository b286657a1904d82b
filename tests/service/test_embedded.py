"""What is served when nobody says what."""

import miniature
from models.family import TextToImage
from models.loading import load
from service.settings import Settings


def test_a_look_through_all_layers_of_the_miniature_is_one_batch(tmp_path):
    [model] = [m for m in Settings.read({"TILLER_HOME": str(tmp_path)}).models if "sd" in m.name]
    hosted = load(model.name, miniature.weights_path("text-to-image"))
    assert isinstance(hosted.family, TextToImage)
    assert model.slots >= hosted.family.lens(hosted).ordinary + 1
