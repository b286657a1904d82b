"""The shipped language model and its SAEs are what their cards say."""

import json

import pytest
import torch

from miniature import weights_path
from miniature.prose.corpus import held_out_texts
from miniature.tasks import accuracy
from miniature.training.language_quality import fact_questions, perplexity
from miniature.world import make_world
from models.loading import load
from steerers.readers import read
from steerers.training.buffer import streams_of

SAES = ("block-1", "block-3", "block-4")


@pytest.fixture(scope="module")
def hosted():
    one = load("miniature-lm", weights_path("language"))
    yield one
    one.close()


def test_it_is_a_llama_that_is_hosted_as_one(hosted):
    assert hosted.family.kind == "llama"
    assert (len(hosted.towers["lm"]), hosted.family.stream_width(hosted, "lm")) == (6, 192)
    assert hosted.family.context_length(hosted) == 256


def test_the_card_states_its_perplexity(miniature_language):
    stated = json.loads((weights_path("language") / "figures.json").read_text())["perplexity"]
    found = perplexity(*miniature_language, n=150)
    assert found["all"] == pytest.approx(stated["all"], rel=0.1)
    assert found["story"] < 4


def test_it_knows_who_holds_which_office(miniature_language):
    facts = fact_questions(make_world())
    assert len(facts) == 16 + 8 + 16
    assert accuracy(*miniature_language, facts) > 0.95


def test_a_conversation_is_written_as_in_training(hosted):
    ids = hosted.family.chat(hosted, [{"role": "user", "content": "Say something."}])
    written = hosted.family.detokenize(hosted, ids, special=True)
    assert written == "<|begin|><|user|>Say something.<|end|><|assistant|>"


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
@pytest.mark.parametrize("place", SAES)
def test_an_sae_fits_its_stream_as_its_card_says(hosted, place, kind):
    name = f"{place}-{kind}"
    dictionary = read(weights_path("saes") / name, id=name)
    stated = json.loads((weights_path("saes") / "figures.json").read_text())[name]
    assert dictionary.site == stated["site"] and dictionary.features >= 8 * 192
    texts = [d.text for d in held_out_texts(60)]
    fit = dictionary.fit(
        p[dictionary.site] for p in streams_of(hosted, texts, [stated["site"]], 128)
    )
    assert 1 - fit.fvu == pytest.approx(stated["explained_variance"], abs=0.04)
    assert fit.l0 == pytest.approx(stated["l0"], rel=0.2)
    assert not fit.warnings(dictionary.declared)
    assert torch.allclose(dictionary.decoder.norm(dim=1), torch.ones(()), atol=2e-3)


def test_all_of_it_is_small():
    sizes = {
        name: sum(f.stat().st_size for f in weights_path(name).rglob("*") if f.is_file())
        for name in ("language", "saes")
    }
    assert sizes["language"] < 7 * 2**20 and sizes["saes"] < 8 * 2**20
