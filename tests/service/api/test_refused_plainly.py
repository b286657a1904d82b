"""What is refused says so in plain words, in the caller's shape, and names the caller's own key."""

import httpx2
import pytest

MODEL, SAE, PATH = "tiny-lm", "toy", "/v1/chat/completions"
SAID = [{"role": "user", "content": "the king of the sea"}]
ANY = {"min_output_score": 0, "on_low_score": "allow"}
FEATURE = {"features": [{"sae": SAE, "feature": 4, "strength": 1.0}], **ANY}


def body(**changes):
    return {"model": MODEL, "messages": SAID, "max_tokens": 2, **changes}


def refused(http, status, path=PATH, **changes):
    answer = http.post(path, json=body(**changes))
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


@pytest.fixture(scope="module")
def winter(speaker_url):
    kept = {"model": MODEL, "steering": FEATURE}
    answer = httpx2.put(f"{speaker_url}/v1/presets/frost", json=kept, timeout=60)
    assert answer.status_code == 201, answer.text


@pytest.mark.usefixtures("winter")
@pytest.mark.parametrize(
    ("changes", "status", "param", "words"),
    [
        ({"steering": {"preset": "nobody"}}, 404, "steering.preset", "/v1/presets"),
        ({"steering": {"vectors": [{"name": "no"}]}}, 404, "steering.vectors[0].name", "vectors"),
        ({"steering": {"vector": "nobody"}}, 404, "steering.vector", "/v1/vectors"),
        ({"steering": {"preset": "frost@9"}}, 404, "steering.preset", "/v1/presets/frost"),
        ({"steering": {"preset": "frost@gone"}}, 404, "steering.preset", "/v1/presets/frost"),
        ({"steering": {"preset": "fr ost"}}, 422, "steering.preset", "winter@live"),
        ({"model": f"{MODEL}+nobody"}, 404, "model", "/v1/presets"),
        ({"model": f"{MODEL}+"}, 422, "model", f"{MODEL}+"),
        ({"model": f"{MODEL}+frost@1+frost@1"}, 422, "model", "named twice"),
        (
            {"model": f"{MODEL}+frost@1", "steering": {"preset": "frost"}},
            422,
            "steering.preset",
            "named twice",
        ),
        (
            {"steering": [{"preset": "frost"}, {"preset": "frost@1"}]},
            422,
            "steering[1].preset",
            "named twice",
        ),
    ],
)
def test_a_name_that_cannot_be_used_is_named_where_it_stands(
    speaking, changes, status, param, words
):
    told = refused(speaking, status, **changes)
    assert told["param"] == param
    assert words in told["message"]
    assert "edit" not in told["message"] or param == "model"


@pytest.mark.parametrize(
    ("steering", "status", "param"),
    [
        ({"concept": "zyzzyva", "strength": 1}, 422, "steering.concept"),
        ([FEATURE, {"concept": "zyzzyva", "strength": 1}], 422, "steering[1].concept"),
        ({"features": [{"sae": SAE, "feature": 48, "strength": 1}]}, 404, "steering.features"),
        ([FEATURE, {**FEATURE, "features": []}], 422, "steering[1]"),
        ({"features": [{"sae": SAE, "feature": 4, "strength": 900}], **ANY}, 422, None),
    ],
)
def test_what_a_steerer_refuses_names_the_requests_own_key(speaking, steering, status, param):
    told = refused(speaking, status, steering=steering)
    assert told["param"] == (param or "steering.strength")


def test_lowering_the_threshold_is_advised_only_where_it_dropped_something(speaking):
    nothing = refused(speaking, 422, steering={"concept": "zyzzyva", "strength": 1})
    assert "min_output_score" not in nothing["message"]
    assert "toy does not cover 'zyzzyva'" in nothing["message"]
    least = {"concept": "king", "strength": 1, "min_output_score": 1}
    dropped = refused(speaking, 422, steering=least)
    assert "lower min_output_score" in dropped["message"]
    assert "best output score" in dropped["message"]


@pytest.mark.parametrize(
    "path", ["embeddings", "responses", "audio/speech", "moderations", "files", "nonsense"]
)
def test_openais_other_paths_are_absent_in_openais_shape(speaking, path):
    answer = speaking.post(f"/v1/{path}", json={"model": MODEL, "input": "x"})
    assert answer.status_code == 404
    told = answer.json()["error"]
    assert (told["type"], told["code"]) == ("invalid_request_error", "not_found")
    assert f"/v1/{path}" in told["message"]
    assert "/v1/chat/completions" in told["message"]


def test_our_own_paths_keep_their_shape(speaking):
    answer = speaking.get("/v1/presets/nobody/nothing/here")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b'{"model": "\xff"}', "not UTF-8: byte 0xff at 11"),
        (b'{"model": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"model": ' + b"1" * 5000 + b"}", "too many digits"),
        (b'{"model": ', "not JSON"),
    ],
)
def test_a_body_that_cannot_be_read_says_why(speaking, sent, words):
    answer = speaking.post(PATH, content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    told = answer.json()["error"]
    assert told["code"] == "unreadable_body"
    assert words in told["message"]


def test_nulls_are_not_given(speaking):
    nulls = ("edits", "compare", "steering", "stop", "n", "tools", "logit_bias", "verbosity")
    answer = speaking.post(PATH, json=body(**dict.fromkeys(nulls)))
    assert answer.status_code == 200, answer.text


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "tool_call_id": "1", "content": "x"}, "role"),
        ({"role": "function", "name": "f", "content": "x"}, "role"),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "user", "content": "x", "name": "ann"}, "name"),
    ],
)
def test_a_conversation_with_tools_says_that_there_are_none(speaking, message, param):
    told = refused(speaking, 422, messages=[*SAID, message])
    assert (told["code"], told["param"]) == ("not_offered", f"messages[1].{param}")
    assert param == "name" or "do not call tools" in told["message"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 200}, "n is 200; this service allows 16."),
        ({"n": 20}, "n is 20; this service allows 16."),
        ({"n": 10**400}, "more than 15 digits"),
        ({"max_tokens": 10**400}, "more than 15 digits"),
        ({"logit_bias": {"five": 1}}, "'five' is no token"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]: must be at most 100."),
        ({"logit_bias": {"100000": 1}}, "no token 100000"),
        ({"stop": 3}, "stop: must be a list."),
        ({"steering": 3}, "steering: must be an object, or a list of objects."),
        ({"temperature": "1"}, "temperature: must be a number."),
        ({"temperature": 0.00001}, "must be 0 for the likeliest token, or 0.0001 to 2."),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role: must be 'system',"),
        ({"messages": []}, "messages: must have at least 1 item."),
        ({"seed": 1.5}, "seed: must be a whole number."),
        ({"edits": [3]}, "edits[0]: must be an object."),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage: must be true"),
    ],
)
def test_limits_and_types_are_told_in_one_plain_sentence(speaking, changes, words):
    told = refused(speaking, 422, **changes)
    assert words in told["message"]
    assert len(told["message"]) < 300
    assert not any(theirs in told["message"] for theirs in ("Input should", "Value error"))


def test_the_limit_of_n_counts_prompts_and_twins(speaking):
    answer = speaking.post("/v1/completions", json={"model": MODEL, "prompt": ["a"] * 5, "n": 4})
    assert "n is 4; this service allows 3 with 5 prompts." in answer.json()["error"]["message"]
    told = refused(speaking, 422, n=9, compare=True, steering=FEATURE)
    assert "n is 9; this service allows 8 with compare." in told["message"]


def test_several_prompts_without_a_seed_draw_one_each(speaking):
    asked = {"model": MODEL, "prompt": ["the king"] * 4, "max_tokens": 6}
    told = speaking.post("/v1/completions", json=asked).json()
    seeds = [choice["seed"] for choice in told["tiller"]["choices"]]
    assert told["tiller"]["seed"] == seeds
    assert len(set(seeds)) == 4
    assert len({choice["text"] for choice in told["choices"]}) > 1
    alone = speaking.post(
        "/v1/completions", json={**asked, "prompt": "the king", "seed": seeds[2]}
    ).json()
    assert alone["choices"][0]["text"] == told["choices"][2]["text"]
    assert alone["tiller"]["seed"] == seeds[2]


def test_a_dictionary_says_how_much_of_it_is_scored(speaking):
    (one,) = speaking.get("/v1/saes").json()["data"]
    scores = one["scores"]
    assert scores["of"] == one["features"] == 48
    assert scores["told"].startswith(f"{scores['scored']} of 48 features are scored")
