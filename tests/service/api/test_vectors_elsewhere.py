"""Directions of models that the library writes, where there is a stream."""

import httpx2
import pytest
import torch
from safetensors.torch import save
from transformers import T5Config, T5ForConditionalGeneration

from models.family import FAMILIES
from models.toys import seeded, wake
from models.toys_t5 import toy_t5_tokenizer
from service.settings import Model, Server, Settings

RECURRENT, PAIRED = "recurrent", "paired"
WAIT = {"Prefer": "wait=60"}
TEXTS = {"positives": ["the king of the sea", "the king"], "negatives": ["a red boat"]}


def paired(folder):
    """An encoder-decoder: two stacks."""
    stated = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    vocab = len(toy_t5_tokenizer(folder))
    config = T5Config(vocab_size=vocab, decoder_start_token_id=0, **stated)
    with seeded(0):
        model = T5ForConditionalGeneration(config)
    wake(model, 0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def http(tmp_path_factory, serving):
    home = tmp_path_factory.mktemp("home")
    folders = {
        RECURRENT: FAMILIES["any_language"].tiny(home / RECURRENT),
        PAIRED: paired(home / PAIRED),
    }
    texts = home / "texts.txt"
    texts.write_text("\n".join(f"a red house {i}" for i in range(60)))
    models = tuple(
        Model(name=name, path=str(folder), max_waiting=8, corpus={"path": str(texts)})
        for name, folder in folders.items()
    )
    settings = Settings(home=home / "state", server=Server(port=0), models=models)
    with serving(settings) as (url, _), httpx2.Client(base_url=url, timeout=60) as client:
        yield client


def ok(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


def complete(http, **asked):
    body = {"model": RECURRENT, "prompt": "the king", "max_tokens": 4, "temperature": 0, **asked}
    return http.post("/v1/completions", json=body)


def applies(http, model):
    return ok(http.get(f"/v1/models/{model}"))["methods"]["control_vector"]


def test_a_direction_is_learned_and_added_to_a_recurrent_model(http):
    assert applies(http, RECURRENT)["applies"]
    job = ok(
        http.post("/v1/vectors", json={"name": "royal", "model": RECURRENT, **TEXTS}, headers=WAIT)
    )
    assert job["state"] == "succeeded", job
    (site,) = job["result"]["report"]["norms"]
    asked = {
        "vectors": [{"name": "royal@1", "strength": 2.0}],
        "unit": "stream",
        "positions": "all",
    }
    told = ok(complete(http, steering=asked))
    assert told["choices"][0]["text"] != ok(complete(http))["choices"][0]["text"]
    assert told["tiller"]["choices"][0]["tokens_changed"][site] > 0
    assert told["tiller"]["steering_sum"][0]["ratio"] == pytest.approx(2.0)


def test_a_direction_of_others_is_imported(http):
    data = save({"layers.1": torch.ones(32)})
    version = ok(
        http.post(
            "/v1/vectors/import",
            data={"name": "happy", "model": RECURRENT},
            files={"file": ("happy.safetensors", data)},
        ),
        201,
    )
    assert version["report"]["stream_norms"]["lm.block.1"] > 0
    steering = {"vectors": [{"name": "happy@1"}], "positions": "all"}
    body = {"model": RECURRENT, "steering": steering}
    assert ok(http.put("/v1/presets/glad", json=body), 201)["version"] == 1
    assert ok(complete(http, steering={"preset": "glad@1"}))["tiller"]["steering"]


def test_some_tokens_only_are_refused_with_the_reason(http):
    told = complete(http, steering={"vectors": [{"name": "happy@1"}]})
    assert told.status_code == 422
    assert "all" in told.json()["error"]["message"]


def test_a_model_without_a_stream_says_so_and_learns_nothing(http):
    told = applies(http, PAIRED)
    assert not told["applies"]
    answer = http.post("/v1/vectors", json={"name": "no", "model": PAIRED, **TEXTS})
    assert (answer.status_code, answer.json()["code"]) == (422, "method_not_applicable")
    assert told["reason"] in answer.text
