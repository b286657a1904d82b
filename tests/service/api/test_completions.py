"""`/v1/completions` on a tiny Llama: text goes on, without a chat template."""

import json

import openai
import pytest

from service import steering

MODEL = "tiny-lm"
PATH = "/v1/completions"
TEXT = "the king of the sea"


@pytest.fixture(scope="module")
def client(speaker_url):
    return openai.OpenAI(base_url=f"{speaker_url}/v1", api_key="unused", max_retries=0)


def body(**changes):
    return {"model": MODEL, "prompt": TEXT, "max_tokens": 6, "seed": 3, **changes}


def answered(http, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http, status, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_the_openai_client_completes_and_streams(client):
    asked = {"model": MODEL, "prompt": TEXT, "max_tokens": 6, "seed": 3}
    whole = client.completions.create(**asked)
    assert whole.object == "text_completion"
    stream = list(client.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text
    assert stream[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_without_a_number_there_are_sixteen_tokens(speaking):
    told = answered(speaking, max_tokens=None, logit_bias={"2": -100})
    assert told["usage"]["completion_tokens"] == 16


def test_several_prompts_are_those_alone_in_order(speaking):
    texts = [TEXT, "a red house", "the old tree"]
    together = answered(speaking, prompt=texts, n=2, temperature=0.7)
    assert [c["index"] for c in together["choices"]] == list(range(6))
    for i, text in enumerate(texts):
        alone = answered(speaking, prompt=text, n=2, temperature=0.7)
        assert [c["text"] for c in together["choices"][2 * i : 2 * i + 2]] == [
            c["text"] for c in alone["choices"]
        ]


def test_token_ids_are_read_as_they_are(speaking):
    ids = [1, 300, 301, 302]
    one = answered(speaking, prompt=ids)
    assert one["usage"]["prompt_tokens"] == 4
    both = answered(speaking, prompt=[ids, ids[:3]])
    assert both["choices"][0]["text"] == one["choices"][0]["text"]
    assert both["usage"]["prompt_tokens"] == 7


def test_echo_puts_the_prompt_in_front(speaking):
    plain, echoed = answered(speaking), answered(speaking, echo=True)
    assert echoed["choices"][0]["text"] == TEXT + plain["choices"][0]["text"]
    text = speaking.post(PATH, json=body(echo=True, stream=True)).text
    lines = [x.removeprefix("data: ") for x in text.splitlines() if x.startswith("data: ")]
    streamed = "".join(json.loads(x)["choices"][0]["text"] for x in lines[:-1])
    assert streamed == echoed["choices"][0]["text"]


def test_log_probabilities_have_the_older_shape(client):
    answer = client.completions.create(
        model=MODEL, prompt=TEXT, max_tokens=5, logprobs=2, temperature=0
    )
    told = answer.choices[0].logprobs
    count = answer.usage.completion_tokens
    assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == count
    for top, logprob in zip(told.top_logprobs, told.token_logprobs, strict=True):
        assert 1 <= len(top) <= 2
        assert max(top.values()) == pytest.approx(logprob, abs=1e-6)
    assert told.text_offset[0] == 0
    assert told.text_offset == sorted(told.text_offset)


def test_steering_works_as_in_chat(speaking):
    steering = {
        "features": [{"sae": "toy", "feature": 7, "strength": 3}],
        "min_output_score": 0,
        "on_low_score": "allow",
        "a_max": "prompt",
    }
    steered = answered(speaking, steering=steering, prompt=[TEXT, "a red house"])
    assert [c["text"] for c in steered["choices"]] != [
        c["text"] for c in answered(speaking, prompt=[TEXT, "a red house"])["choices"]
    ]
    # A of each prompt is its own, so each has its report.
    assert [r["prompt"] for r in steered["tiller"]["steering"]] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"suffix": "end"}, "not_offered", "suffix"),
        ({"best_of": 3}, "not_offered", "best_of"),
        ({"echo": True, "logprobs": 1}, "not_offered", "echo"),
        ({"prompt": []}, "bad_request", "prompt"),
        ({"prompt": [1, "a"]}, "bad_request", "prompt"),
        ({"prompt": [[1], ["a"]]}, "bad_request", "prompt[1][0]"),
        ({"prompt": [10**6]}, "bad_generation", "prompt"),
        ({"prompt": [5] * 20_000}, "context_too_long", "prompt"),
        ({"prompt": ["a"] * 17}, "too_much", "prompt"),
        ({"prompt": ["a"] * 5, "n": 4}, "too_much", "n"),
        ({"messages": []}, "unknown_key", "messages"),
        ({"logprobs": 21}, "bad_request", "logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(speaking, changes, code, param):
    told = refused(speaking, 422, **changes)
    assert (told["code"], told["param"]) == (code, param)


@pytest.mark.parametrize(
    ("prompt", "code"), [([5] * 20_000, "context_too_long"), ([[5], [10**6]], "bad_generation")]
)
def test_a_prompt_that_the_engine_refuses_is_not_read_by_a_plan(
    speaking, monkeypatch, prompt, code
):
    def read(*_):
        raise AssertionError("the model has read the prompt")

    monkeypatch.setattr(steering, "at_prompt", read)
    asked = {"features": [{"sae": "toy", "feature": 7, "strength": 1}], "a_max": "prompt"}
    told = refused(speaking, 422, prompt=prompt, steering=asked | {"min_output_score": 0})
    assert (told["code"], told["param"]) == (code, "prompt")
