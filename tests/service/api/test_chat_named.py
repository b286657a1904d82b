"""What has a name in the registry, used by chat: adapters, presets, vectors, variants."""

import io
import warnings
import zipfile

import httpx2
import openai
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.client import Tiller

MODEL, SAE = "tiny-lm", "toy"
SAID = [{"role": "user", "content": "the king of arda"}]
PATH = "/v1/chat/completions"
TOKENS = 12


def body(**changes):
    return {"model": MODEL, "messages": SAID, "max_tokens": TOKENS, "temperature": 0, **changes}


def answered(http, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http, status, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def said(answer):
    return answer["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def adapted(tiny_lm_folder):
    """The tiny Llama under a random LoRA, by PEFT itself."""
    model = AutoModelForCausalLM.from_pretrained(tiny_lm_folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():  # PEFT asks transformers by a name that it deprecates
        warnings.simplefilter("ignore", FutureWarning)
        with_lora = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, weight in with_lora.named_parameters():
        if "lora_" in name:
            weight.data = 0.4 * torch.randn(weight.shape, generator=generator)
    return with_lora


@pytest.fixture(scope="module")
def cheerful(adapted, speaker_url, tmp_path_factory):
    """The adapter, imported: the name of an edit whose alias `live` points to it."""
    folder = tmp_path_factory.mktemp("lora")
    adapted.save_pretrained(folder)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            archive.write(folder / name, name)
    with Tiller(speaker_url) as tiller:
        version = tiller.edits.import_("cheerful", buffer.getvalue(), model=MODEL)
        tiller.edits.promote("cheerful", version["version"], force=True)
    return version


@pytest.fixture(scope="module")
def by_peft(adapted, tiny_lm_folder):
    """What PEFT's model answers, greedily, token by token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm_folder)
    ids = tokenizer.apply_chat_template(SAID, add_generation_prompt=True, return_tensors="pt")
    ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
    written = adapted.generate(input_ids=ids, max_new_tokens=TOKENS, do_sample=False)
    return [tokenizer.decode([token]) for token in written[0, ids.shape[1] :].tolist()]


def test_an_imported_adapter_answers_as_it_does_in_peft(speaking, cheerful, by_peft):
    plain = answered(speaking)
    edited = answered(speaking, edits=["cheerful"], logprobs=True)
    assert [t["token"] for t in edited["choices"][0]["logprobs"]["content"]] == by_peft
    assert said(edited) != said(plain)
    told = edited["tiller"]
    assert told["edits"] == [
        {"name": "cheerful", "version": 1, "digest": cheerful["digest"], "strength": 1.0}
    ]
    assert told["exact"] is False
    changed = told["choices"][0]["tokens_changed"]
    assert any(site.endswith("down_proj") for site in changed)
    assert told["choices"][0]["tokens_steered"] == 0


def test_an_imported_adapter_is_measured_by_its_size(cheerful):
    report = cheerful["report"]
    assert cheerful["status"] == "unmeasured"
    assert report["leak"] > 0
    assert report["drift"] > 0
    assert report["why"]


def test_the_name_stands_in_the_models_name_for_any_client(speaker_url, cheerful, by_peft):
    client = openai.OpenAI(base_url=f"{speaker_url}/v1", api_key="unused", max_retries=0)
    asked = {"messages": SAID, "max_tokens": TOKENS, "temperature": 0}
    answer = client.chat.completions.create(model=f"{MODEL}+cheerful@live", logprobs=True, **asked)
    assert [t.token for t in answer.choices[0].logprobs.content] == by_peft
    assert answer.model == f"{MODEL}+cheerful@live"
    assert answer.tiller["edits"][0]["digest"] == cheerful["digest"]


@pytest.mark.usefixtures("cheerful")
def test_strength_zero_is_plain_and_compare_shows_both(speaking):
    plain = said(answered(speaking))
    nothing = answered(speaking, edits=[{"name": "cheerful", "strength": 0.0}])
    assert said(nothing) == plain
    both = answered(speaking, edits=["cheerful"], compare=True)
    assert both["tiller"]["plain"][0]["message"]["content"] == plain
    assert said(both) == said(answered(speaking, edits=["cheerful"]))


@pytest.mark.usefixtures("cheerful")
def test_an_edit_and_steering_of_one_row_act_together(speaking):
    steering = {
        "features": [{"sae": SAE, "feature": 7, "strength": 3}],
        "min_output_score": 0,
        "on_low_score": "allow",
    }
    both = answered(speaking, edits=["cheerful"], steering=steering)
    others = [answered(speaking, edits=["cheerful"]), answered(speaking, steering=steering)]
    assert len({said(a) for a in (both, *others, answered(speaking))}) == 4
    told = both["tiller"]["choices"][0]
    assert told["tokens_steered"] == told["completion_tokens"]


@pytest.mark.usefixtures("cheerful")
def test_an_adapter_goes_back_to_peft(speaking, adapted):
    data = speaking.get("/v1/edits/cheerful/versions/1/delta?format=peft").content
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    assert any(name.endswith("adapter_model.safetensors") for name in names)
    assert adapted is not None


@pytest.fixture(scope="module")
def winter(speaker_url):
    """A steering preset of one feature, as a version of `winter`."""
    steering = {
        "features": [{"sae": SAE, "feature": 11, "strength": 3}],
        "min_output_score": 0,
        "on_low_score": "allow",
    }
    told = httpx2.put(
        f"{speaker_url}/v1/presets/winter", json={"model": MODEL, "steering": steering}, timeout=60
    )
    assert told.status_code == 201, told.text
    return steering


def test_a_preset_steers_as_what_it_keeps(speaking, winter):
    direct = answered(speaking, steering=winter)
    named = answered(speaking, steering={"preset": "winter@1"})
    assert said(named) == said(direct)
    assert named["tiller"]["patch"] == direct["tiller"]["patch"]
    [report] = named["tiller"]["steering"]
    assert report["preset"]["name"] == "winter"
    assert report["preset"]["version"] == 1
    assert said(answered(speaking, model=f"{MODEL}+winter@1")) == said(direct)


@pytest.mark.usefixtures("cheerful", "winter")
def test_a_variant_bundles_edits_and_presets_under_a_models_name(speaking):
    names = ["cheerful@live", "winter@1"]
    made = speaking.put("/v1/variants/merry-winter", json={"model": MODEL, "edits": names})
    assert made.status_code == 200, made.text
    card = speaking.get("/v1/models/merry-winter").json()
    assert [e["name"] for e in card["edits"]] == ["cheerful"]
    assert card["steering"][0]["preset"]["name"] == "winter"
    listed = {m["id"] for m in speaking.get("/v1/models").json()["data"]}
    assert "merry-winter" in listed
    by_variant = answered(speaking, model="merry-winter")
    by_name = answered(speaking, model=f"{MODEL}+cheerful@live+winter@1")
    by_keys = answered(speaking, edits=["cheerful"], steering={"preset": "winter@1"})
    assert said(by_variant) == said(by_name) == said(by_keys)
    assert by_variant["tiller"]["variant"] == "merry-winter"


@pytest.mark.usefixtures("cheerful", "winter")
@pytest.mark.parametrize(
    "changes",
    [
        {"edits": ["winter@1"]},
        {"steering": {"preset": "cheerful@1"}},
        {"steering": {"vectors": [{"name": "winter@1"}]}},
    ],
)
def test_a_name_in_the_wrong_place_is_told_where_it_belongs(speaking, changes):
    told = refused(speaking, 422, **changes)
    assert told["code"] == "wrong_kind"
    assert "model's name" in told["message"]


@pytest.mark.usefixtures("winter")
def test_a_preset_takes_no_strength(speaking):
    named = [{"name": "winter@1", "strength": 2.0}]
    made = speaking.put("/v1/variants/strong", json={"model": MODEL, "edits": named})
    assert made.status_code == 422
    assert made.json()["code"] == "preset_strength"


@pytest.fixture(scope="module")
def kinder(speaker_url):
    """A direction that was learned from two lists of texts."""
    asked = {
        "name": "kinder",
        "model": MODEL,
        "positives": ["the king is a man", "the house of the king"],
        "negatives": ["a red tree", "a blue dog is green"],
        "sites": ["lm.block.1"],
    }
    with httpx2.Client(base_url=speaker_url, timeout=120) as client:
        told = client.post("/v1/vectors", json=asked, headers={"Prefer": "wait=60"}).json()
        assert told["state"] == "succeeded", told
    return told["result"]


def test_a_learned_vector_steers_and_says_how_much(speaking, kinder):
    steering = {"vectors": [{"name": "kinder@1", "strength": 2.0}]}
    steered = answered(speaking, steering=steering)
    assert said(steered) != said(answered(speaking))
    [report] = steered["tiller"]["steering"]
    assert report["vector"] == "kinder@1"
    assert report["vector_digest"] == kinder["digest"]
    assert report["sites"][0]["site"] == "lm.block.1"
    half = answered(speaking, steering={"vectors": [{"name": "kinder@1", "strength": 1.0}]})
    by_name = answered(speaking, model=f"{MODEL}+kinder@1")
    assert by_name["tiller"]["patch"] == half["tiller"]["patch"]
