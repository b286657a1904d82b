"""What is served when nobody says what."""

import miniature
from evaluation.writing import Asked, Writer
from models.family import TextToImage
from models.loading import load
from models.patch import Patch
from service.settings import Settings
from service.weights import dictionaries_of, labels_of
from steerers.methods.sae import SAE
from steerers.shelf import Shelf


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


SEA = (
    "sea",
    "wave",
    "ship",
    "sail",
    "harbour",
    "anchor",
    "tide",
    "shore",
    "rocks",
    "boat",
    "captain",
)


def test_asked_for_the_sea_it_writes_of_the_sea_several_times_as_often(tmp_path):
    model = served(tmp_path)["miniature-lm"]
    hosted = load("lm", miniature.weights_path("language"))
    labels = labels_of(model)
    shelves = {
        d.id: Shelf.of(hosted, d, labels={one.feature: one.label for one in labels.get(d.id, ())})
        for d in dictionaries_of(model)
        if d.site == "lm.block.4"
    }
    planned = SAE(concept="the sea", strength=1.6).plan(hosted, shelves)
    with Writer(hosted, slots=16) as writer:
        steered, plain = (_about(writer, patch) for patch in (planned.patch, Patch()))
    assert steered >= 3 * max(plain, 1)


def _about(writer, patch):
    """Of 40 texts, those with a word of the sea."""
    openers = [writer.tokens(o) for o in ("I believe that", "One day,", "To be honest,", "Once,")]
    asked = [Asked(prompt=o, patch=patch, seed=s) for o in openers for s in range(10)]
    return sum(any(word in text.text.lower() for word in SEA) for text in writer.write(asked))
