"""What is served when nobody says what."""

import miniature
from models.family import TextToImage
from models.loading import load
from service.settings import Settings
from service.weights import dictionaries_of


def served(tmp_path):
    return {m.name: m for m in Settings.read({"TILLER_HOME": str(tmp_path)}).models}


def test_a_look_through_all_layers_of_the_miniature_is_one_batch(tmp_path):
    model = served(tmp_path)["miniature-sd"]
    hosted = load(model.name, miniature.weights_path("text-to-image"))
    assert isinstance(hosted.family, TextToImage)
    assert model.slots >= hosted.family.lens(hosted).ordinary + 1


def test_the_language_model_brings_its_dictionaries(tmp_path):
    found = dictionaries_of(served(tmp_path)["miniature-lm"])
    hosted = load("lm", miniature.weights_path("language"))
    assert {d.site for d in found} == {"lm.block.1", "lm.block.3", "lm.block.4"}
    for dictionary in found:
        dictionary.check(hosted)
