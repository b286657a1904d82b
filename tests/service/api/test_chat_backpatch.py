"""`backpatch` of a request on a tiny Qwen2-VL: what is done, what is told, what is refused."""

import io
import json
import zipfile

import httpx2
import openai
import pytest
import torch
from safetensors.torch import save

from models.loading import load
from models.patch import Detour, Patch
from models.sight import Shown
from service.backpatching import kept
from service.registry.kinds import STEERING
from service.settings import Limits
from steerers.methods.back_patch import BackPatch
from tests.service.shown import SEER, asking, drawn, written

PATH, BEST = "/v1/chat/completions", {"source": 3, "target": 1}
PICTURE = drawn(64, 48)
PHOTO = written(PICTURE)
SAID = [asking(PHOTO, "the king of arda")]
ASKED = {"model": SEER, "messages": SAID, "max_tokens": 6, "temperature": 0}


def answered(http, **changes):
    answer = http.post(PATH, json={**ASKED, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http, status=422, **changes):
    answer = http.post(PATH, json={**ASKED, **changes})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def text(answer):
    return answer["choices"][0]["message"]["content"]


def first_logprob(answer):
    return answer["choices"][0]["logprobs"]["content"][0]["logprob"]


def test_the_answer_is_the_one_of_a_forward_with_the_detour(seeing, tiny_vl_folder):
    hosted = load("tiny", tiny_vl_folder)
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a cat"}]}]
    ids, sight = hosted.family.look(hosted, said, [PICTURE])
    shown = [Shown(sight=sight, seen=hosted.family.see(hosted, sight))]
    for pairs in ([], [[3, 1]], [[3, 0], [2, 1]]):
        patch = Patch(tuple(Detour(tower="lm", source=s, target=t) for s, t in pairs))
        with torch.inference_mode(), hosted.planned([patch.placed(sight.named)]):
            logits = hosted.family.logits(hosted, torch.tensor([ids]), shown)[0, -1]
        expected = float(logits.log_softmax(-1).max())
        plan = {"backpatch": {"pairs": pairs}} if pairs else {}
        told = answered(seeing, messages=[asking(PHOTO, "a cat")], logprobs=True, **plan)
        assert first_logprob(told) == pytest.approx(expected, abs=1e-4)
    hosted.close()


def test_the_answer_tells_the_plan_its_columns_and_its_cost(seeing):
    told = answered(seeing, backpatch={**BEST, "window": 3, "loops": 2})["tiller"]
    plan = told["backpatch"]
    # Of three pairs the one that ends outside of four layers is dropped.
    assert plan["pairs"] == [[2, 0], [3, 1]]
    assert (plan["positions"], plan["loops"], plan["pictures"]) == ("visual", 2, 1)
    [[first, end]] = plan["columns"]
    assert end - first == plan["tokens"] == plan["visual_tokens"] == 12
    assert plan["extra_token_layers"] == 2 * end * 3
    assert told["choices"][0]["tokens_backpatched"] == 2 * 12
    assert told["choices"][0]["tokens_steered"] == 0
    assert told["steering"] == []
    assert "preset" not in plan


def test_several_pictures_are_several_runs_and_tokens_can_be_named(seeing):
    two = [asking(PHOTO, "and", written(drawn(48, 48, seed=3)), "the king")]
    runs = answered(seeing, messages=two, backpatch=BEST)["tiller"]["backpatch"]
    assert [end - first for first, end in runs["columns"]] == [12, 9]
    assert (runs["visual_tokens"], runs["pictures"]) == (21, 2)
    named = answered(seeing, messages=[asking("the king of arda")], backpatch={
        **BEST, "positions": [2, 3, 5],
    })["tiller"]["backpatch"]  # fmt: skip
    assert named["columns"] == [[2, 4], [5, 6]]
    assert (named["tokens"], named["visual_tokens"], named["extra_token_layers"]) == (3, 0, 12)


def test_a_stream_tells_it_in_its_last_chunk(seer_url):
    client = openai.OpenAI(base_url=f"{seer_url}/v1", api_key="unused", max_retries=0)
    whole = client.chat.completions.create(**ASKED, extra_body={"backpatch": BEST})
    stream = client.chat.completions.create(**ASKED, stream=True, extra_body={"backpatch": BEST})
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    told = chunks[-1].model_extra["tiller"]
    assert told["backpatch"]["pairs"] == [[3, 1]]
    assert told["choices"][0]["tokens_backpatched"] == 12
    assert all("tiller" not in (chunk.model_extra or {}) for chunk in chunks[:-1])


def test_compare_answers_patched_and_plain(seeing):
    both = answered(seeing, backpatch=BEST, compare=True, logprobs=True)
    patched = answered(seeing, backpatch=BEST, logprobs=True)
    plain = answered(seeing, logprobs=True)
    assert first_logprob(both) == pytest.approx(first_logprob(patched), abs=1e-5)
    twin = both["tiller"]["plain"][0]
    assert twin["message"] == plain["choices"][0]["message"]
    assert abs(first_logprob(both) - first_logprob(plain)) > 1e-3
    assert both["tiller"]["plain_choices"][0]["tokens_backpatched"] == 0
    assert refused(seeing, compare=True)["param"] == "compare"


def test_a_second_question_about_the_picture_is_not_patched_again(seeing):
    """The cache holds patched keys and values; a plain question does not meet them."""
    before = "the king of arda is the king of the sea and of the house"
    photo = written(PICTURE.rotate(180))  # nobody asked about it before
    house, tree = ([asking(photo, f"{before}, a {thing}")] for thing in ("house", "tree"))
    answered(seeing, backpatch=BEST, messages=house)
    again = answered(seeing, backpatch=BEST, messages=tree)
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 32
    assert again["tiller"]["choices"][0]["tokens_backpatched"] == 12
    for plan in ({"backpatch": {**BEST, "loops": 3}}, {}):
        fresh = answered(seeing, messages=tree, **plan)
        assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_it_is_a_steerer_and_adds_up_with_others(seeing):
    entry = {"kind": "back_patch", **BEST}
    as_entry = answered(seeing, steering=entry, logprobs=True)
    as_key = answered(seeing, backpatch=BEST, logprobs=True)
    assert first_logprob(as_entry) == pytest.approx(first_logprob(as_key), abs=1e-5)
    assert as_entry["tiller"]["backpatch"] == as_key["tiller"]["backpatch"]
    made = seeing.post(
        "/v1/vectors",
        json={
            "name": "kingly",
            "model": SEER,
            "positives": ["the king", "a king"],
            "negatives": ["the sea", "a boat"],
            "sites": ["lm.block.0"],
        },
        headers={"Prefer": "wait=60"},
    )
    assert made.json()["state"] == "succeeded", made.text
    vectors = {"vectors": [{"name": "kingly", "strength": 2.0}]}
    both = answered(seeing, steering=vectors, backpatch=BEST, logprobs=True)
    alone = answered(seeing, steering=vectors, logprobs=True)
    assert len({round(first_logprob(a), 5) for a in (both, alone, as_key)}) == 3
    assert both["tiller"]["steering"][0]["kind"] == "control_vector"
    assert both["tiller"]["choices"][0]["tokens_steered"] > 0
    assert both["tiller"]["choices"][0]["tokens_backpatched"] == 12


def adapter(folder):
    """A PEFT adapter of the second layer, as a zip."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    generator, path = (
        torch.Generator().manual_seed(2),
        "model.language_model.layers.1.mlp.down_proj",
    )
    shapes = {"A": (1, text["intermediate_size"]), "B": (text["hidden_size"], 1)}
    weights = {
        f"base_model.model.{path}.lora_{side}.weight": torch.randn(shape, generator=generator)
        for side, shape in shapes.items()
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["down_proj"]}
        archive.writestr("adapter_config.json", json.dumps(config))
        archive.writestr("adapter_model.safetensors", save(weights))
    return buffer.getvalue()


def test_an_adapter_is_in_force_below_and_above_it(seeing, tiny_vl_folder):
    form = {"name": "dialect", "model": SEER}
    made = seeing.post(
        "/v1/edits/import", data=form, files={"file": ("a.zip", adapter(tiny_vl_folder))}
    )
    assert made.status_code == 201, made.text
    edits = {"edits": ["dialect@1"]}
    alone = answered(seeing, logprobs=True, **edits)
    both = answered(seeing, logprobs=True, backpatch=BEST, compare=True, **edits)
    patched = answered(seeing, logprobs=True, backpatch=BEST)
    assert len({round(first_logprob(a), 4) for a in (alone, both, patched)}) == 3
    told = both["tiller"]
    assert told["edits"][0]["name"] == "dialect"
    assert told["choices"][0]["tokens_backpatched"] == 12
    assert told["plain"][0]["message"]["content"] == text(answered(seeing))


@pytest.mark.parametrize(
    ("plan", "code", "key"),
    [
        ({"source": 4, "target": 1}, "bad_back_patch", "source"),
        ({"source": 1, "target": 1}, "bad_back_patch", "source"),
        ({"source": 1, "target": 3}, "bad_back_patch", "source"),
        ({"source": 3}, "bad_back_patch", "target"),
        ({"target": 1}, "bad_back_patch", "source"),
        ({}, "bad_back_patch", "source"),
        ({**BEST, "window": 2}, "bad_back_patch", "window"),
        ({**BEST, "window": 17}, "bad_request", "window"),
        ({**BEST, "window": 0}, "bad_request", "window"),
        ({**BEST, "loops": 0}, "bad_request", "loops"),
        ({**BEST, "loops": 11}, "bad_request", "loops"),
        ({**BEST, "pairs": [[3, 1]]}, "bad_back_patch", "pairs"),
        ({"pairs": [[3, 1], [2, 1]]}, "bad_back_patch", "pairs"),
        ({"pairs": [[3, 1, 0]]}, "bad_request", "pairs[0]"),
        ({"pairs": [[3]]}, "bad_request", "pairs[0]"),
        ({"pairs": [["3", 1]]}, "bad_request", "pairs[0][0]"),
        ({"pairs": [[1, 3]]}, "bad_back_patch", "pairs"),
        ({"pairs": [[3, 1], [9, 2]]}, "bad_back_patch", "pairs"),
        ({**BEST, "positions": "all"}, "bad_request", "positions"),
        ({**BEST, "positions": [1, "2"]}, "bad_request", "positions[1]"),
        ({**BEST, "positions": []}, "bad_back_patch", "positions"),
        ({**BEST, "positions": [3, 2]}, "bad_back_patch", "positions"),
        ({**BEST, "positions": [-1, 2]}, "bad_back_patch", "positions"),
        ({**BEST, "positions": [1, 4000]}, "bad_back_patch", "positions"),
        ({"source": "3", "target": 1}, "bad_request", "source"),
        ({"source": -1, "target": 1}, "bad_request", "source"),
        ({**BEST, "sorce": 3}, "unknown_key", "sorce"),
        ({"kind": "sae"}, "bad_request", "kind"),
        ({"preset": "nobody"}, "unknown_name", "preset"),
        ({"preset": "nobody", "window": 3}, "bad_steering", "window"),
        ({"preset": ""}, "bad_request", "preset"),
    ],
)
def test_a_plan_that_leads_nowhere_is_refused_by_its_key(seeing, plan, code, key):
    status = 404 if code == "unknown_name" else 422
    told = refused(seeing, status, backpatch=plan)
    assert (told["code"], told["param"]) == (code, f"backpatch.{key}")


def test_tokens_by_number_are_told_of_where_a_word_is_wrong(seeing):
    told = refused(seeing, backpatch={**BEST, "positions": "visul"})
    assert "'visual' or 'reference', or a list of whole numbers" in told["message"]


def test_two_plans_of_a_variant_are_told_by_their_names(seeing):
    kept = {"model": SEER, "backpatch": BEST}
    assert seeing.put("/v1/presets/one", json=kept).status_code == 201
    kept["backpatch"] = {"source": 2, "target": 1}
    assert seeing.put("/v1/presets/two", json=kept).status_code == 201
    both = {"model": SEER, "edits": ["one@1", "two@1"]}
    told = seeing.put("/v1/variants/torn", json=both).json()
    assert (told["code"], told["param"]) == ("back_patch_twice", "edits")
    assert told["detail"].startswith("one@1 and two@1 are two plans")
    gone = seeing.put("/v1/variants/torn", json={"model": SEER, "edits": ["nobody"]}).json()
    assert gone["param"] == "edits"


def test_an_entry_of_steering_names_its_own_key(seeing):
    entry = {"kind": "back_patch", **BEST, "window": 2}
    assert refused(seeing, steering=entry)["param"] == "steering.window"
    both = refused(seeing, steering=[{"kind": "back_patch", **BEST}], backpatch=BEST)
    assert (both["code"], both["param"]) == ("back_patch_twice", "backpatch")


def test_a_prompt_without_pictures_and_a_model_without_eyes_say_so(seeing):
    words = [asking("the king")]
    told = refused(seeing, messages=words, backpatch=BEST)
    assert (told["code"], told["param"]) == ("bad_back_patch", "backpatch.positions")
    blind = refused(seeing, model="tiny-lm", messages=words, backpatch=BEST)
    assert (blind["code"], blind["param"]) == ("method_not_applicable", "backpatch")
    completion = {"model": SEER, "prompt": "the king", "backpatch": BEST}
    assert seeing.post("/v1/completions", json=completion).json()["error"]["code"] == "unknown_key"


def test_the_operator_bounds_the_loops(seer_settings_for, serving):
    few = seer_settings_for(limits=Limits(backpatch_loops=2))
    with serving(few) as (url, _), httpx2.Client(base_url=url, timeout=60) as http:
        told = refused(http, backpatch={**BEST, "loops": 3})
    assert (told["code"], told["param"]) == ("too_much", "backpatch.loops")


# --- presets and variants -------------------------------------------------------------------------


def put(http, name, **body):
    return http.put(f"/v1/presets/{name}", json={"model": SEER, **body})


@pytest.fixture(scope="module")
def counting(seer_url):
    """A preset of one version, with an alias."""
    with httpx2.Client(base_url=seer_url, timeout=60) as http:
        made = put(http, "counting", backpatch={**BEST, "window": 3})
        assert made.status_code == 201, made.text
        alias = "/v1/presets/counting/aliases/live"
        assert http.put(alias, json={"version": made.json()["version"]}).status_code == 200
        return made.json()


def test_a_preset_keeps_a_plan_and_requests_name_it(seeing, counting):
    assert counting["backpatch"] == {**BEST, "window": 3}
    assert counting["calibration"] is None
    direct = answered(seeing, backpatch={**BEST, "window": 3}, logprobs=True)
    ways = [
        {"backpatch": {"preset": "counting@live"}},
        {"backpatch": {"preset": f"counting@{counting['version']}"}},
        {"steering": {"preset": "counting"}},
        {"model": f"{SEER}+counting@live"},
    ]
    for way in ways:
        told = answered(seeing, logprobs=True, **way)
        assert first_logprob(told) == pytest.approx(first_logprob(direct), abs=1e-5)
        plan = told["tiller"]["backpatch"]
        assert plan["pairs"] == [[2, 0], [3, 1]]
        assert plan["preset"] == {
            "name": "counting",
            "version": counting["version"],
            "digest": counting["digest"],
        }
    twice = refused(seeing, model=f"{SEER}+counting@live", backpatch=BEST)
    assert twice["code"] == "back_patch_twice"


def test_a_variant_bundles_it(seeing, counting):
    assert counting["preset"] == "counting"
    body = {"model": SEER, "edits": ["counting@live"]}
    assert seeing.put("/v1/variants/careful", json=body).status_code == 200
    told = answered(seeing, model="careful")["tiller"]
    assert told["variant"] == "careful"
    assert told["backpatch"]["preset"]["name"] == "counting"
    shown = seeing.get("/v1/models/careful").json()
    assert shown["steering"][0]["preset"]["name"] == "counting"


def test_a_preset_of_a_plan_is_one_or_the_other_and_is_tried_when_it_is_put(seeing):
    both = put(seeing, "both", backpatch=BEST, steering={"kind": "back_patch", **BEST})
    assert both.json()["param"] == "backpatch"
    assert put(seeing, "neither").json()["param"] == "steering"
    assert put(seeing, "wrong", backpatch={**BEST, "window": 2}).json()["code"] == "bad_back_patch"
    nested = put(seeing, "nested", backpatch={"preset": "counting"})
    assert nested.json()["code"] == "unknown_key"
    blind = put(seeing, "blind", backpatch=BEST, model="tiny-lm")
    assert blind.status_code == 422


def test_a_preset_does_not_number_tokens_which_fit_one_prompt(seeing):
    numbered = {**BEST, "positions": [2, 3, 5]}
    told = put(seeing, "numbered", backpatch=numbered)
    assert (told.status_code, told.json()["code"]) == (422, "bad_back_patch")
    assert told.json()["param"] == "backpatch.positions"
    assert "visual" in told.json()["remedy"]
    told = put(seeing, "numbered", steering={"kind": "back_patch", **numbered})
    assert (told.json()["code"], told.json()["param"]) == ("bad_back_patch", "steering.positions")
    assert seeing.get("/v1/presets/numbered").status_code == 404
    kept = put(seeing, "by-name", backpatch={**BEST, "positions": "reference"})
    assert kept.json()["backpatch"]["positions"] == "reference"


def test_a_calibration_is_part_of_a_version_and_other_weights_refuse_it(seer, seeing):
    fingerprint = seeing.get(f"/v1/models/{SEER}").json()["fingerprint"]
    found = {"gain": 0.1, "interval": [0.02, 0.18], "control": 0.0, "data": "sha256:1"}
    presets = seer[1].registry.presets

    def keep(name, weights, calibration):
        body = kept(BackPatch(**BEST), calibration)
        return presets.put("default", STEERING, name, SEER, weights, body, actor="test")

    first = keep("gained", fingerprint, found)
    other = keep("gained", fingerprint, {**found, "gain": 0.2})
    assert (first.number, other.number) == (1, 2)
    plan = answered(seeing, backpatch={"preset": "gained@1"})["tiller"]["backpatch"]
    assert plan["calibration"] == found
    shown = seeing.get("/v1/presets/gained/versions/1").json()
    assert (shown["backpatch"], shown["calibration"]) == (BEST, found)
    keep("elsewhere", "f" * 64, None)
    told = refused(seeing, 409, backpatch={"preset": "elsewhere"})
    assert (told["code"], told["param"]) == ("wrong_base", "backpatch.preset")


def test_a_preset_that_steers_is_no_plan(seeing):
    made = seeing.post(
        "/v1/vectors",
        json={
            "name": "seaward",
            "model": SEER,
            "positives": ["the sea", "a boat"],
            "negatives": ["the king", "a king"],
            "sites": ["lm.block.0"],
        },
        headers={"Prefer": "wait=60"},
    )
    assert made.json()["state"] == "succeeded", made.text
    kept = put(seeing, "steers", steering={"vectors": [{"name": "seaward", "strength": 1.0}]})
    assert kept.status_code == 201, kept.text
    told = refused(seeing, backpatch={"preset": "steers"})
    assert (told["code"], told["param"]) == ("no_back_patch", "backpatch.preset")
    vector = refused(seeing, backpatch={"preset": "seaward"})
    assert vector["code"] == "wrong_kind"


def test_the_schema_lists_its_keys(seeing):
    schema = seeing.get("/openapi.json").json()["components"]["schemas"]
    assert "backpatch" in schema["ChatBody"]["properties"]
    assert {"source", "target", "window", "pairs", "positions", "loops"} <= set(
        schema["BackPatch"]["properties"]
    )
    assert json.dumps(schema["ChatBody"]["properties"]["backpatch"]).count("$ref") == 2
