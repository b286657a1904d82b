"""Chat on a tiny Llama, by the real OpenAI client and by raw HTTP."""

import asyncio
import json
import math

import openai
import pytest

MODEL = "tiny-lm"
SAID = [{"role": "user", "content": "the king of the sea"}]
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(speaker_url):
    return openai.OpenAI(base_url=f"{speaker_url}/v1", api_key="unused", max_retries=0)


def body(**changes):
    return {"model": MODEL, "messages": SAID, "max_tokens": 8, "seed": 3, **changes}


def answered(http, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http, status, **changes):
    answer = http.post(PATH, json=body(**changes))
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def chunks(http, **changes):
    """The stream's chunks, which ends as OpenAI's does."""
    text = http.post(PATH, json=body(stream=True, **changes)).text
    said = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert said[-1] == "[DONE]"
    return [json.loads(line) for line in said[:-1]]


def test_the_openai_client_chats_without_knowing_us(client):
    answer = client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert 0 < answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.system_fingerprint.startswith("tiller_")


def test_an_answer_can_be_put_into_the_next_conversation(client):
    first = client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=4, seed=1)
    longer = [*SAID, first.choices[0].message, {"role": "user", "content": "say that"}]
    second = client.chat.completions.create(model=MODEL, messages=longer, max_tokens=4, seed=1)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_a_stream_says_what_the_whole_answer_says(client):
    asked = {"model": MODEL, "messages": SAID, "max_tokens": 12, "seed": 3}
    whole = client.chat.completions.create(**asked)
    stream = list(client.chat.completions.create(**asked, stream=True))
    assert stream[0].choices[0].delta.role == "assistant"
    said = "".join(c.choices[0].delta.content or "" for c in stream)
    assert said == whole.choices[0].message.content
    assert stream[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {c.id for c in stream} == {stream[0].id}
    assert all(c.usage is None for c in stream)


def test_the_last_chunk_says_what_was_applied(speaking):
    found = chunks(speaking)
    assert [("tiller" in c) for c in found] == [False] * (len(found) - 1) + [True]
    assert found[-1]["tiller"]["choices"][0]["completion_tokens"] <= 8
    with_usage = chunks(speaking, stream_options={"include_usage": True})
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"]["prompt_tokens"] > 0
    assert with_usage[-1]["tiller"]["seed"] == 3
    assert [c.get("usage", "none") for c in with_usage[:-1]] == [None] * (len(with_usage) - 1)
    assert all(c["choices"] for c in with_usage[:-1])


def test_the_async_client_streams_several_answers_at_once(speaker_url):
    async def one(client, seed):
        asked = {"model": MODEL, "messages": SAID, "max_tokens": 12, "seed": seed}
        stream = await client.chat.completions.create(**asked, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(
            base_url=f"{speaker_url}/v1", api_key="unused", max_retries=0
        ) as client:
            together = await asyncio.gather(*(one(client, seed) for seed in range(4)))
            alone = [await one(client, seed) for seed in range(4)]
        return together, alone

    together, alone = asyncio.run(all_of_them())
    assert together == alone
    assert len(set(together)) > 1


def test_the_stream_helper_of_the_openai_client_understands_us(client):
    asked = {"model": MODEL, "messages": SAID, "max_tokens": 12, "temperature": 0}
    text = client.chat.completions.create(**asked).choices[0].message.content
    # Their helper takes an answer that ends at its length for an error.
    with client.chat.completions.stream(**asked, stop=text[6:8]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == text[: text.index(text[6:8])]


def test_several_choices_stand_in_order_and_the_prompt_counts_once(speaking):
    one, three = answered(speaking), answered(speaking, n=3)
    assert [c["index"] for c in three["choices"]] == [0, 1, 2]
    assert three["choices"][0]["message"] == one["choices"][0]["message"]
    assert len({c["message"]["content"] for c in three["choices"]}) > 1
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    streamed = {0: "", 1: "", 2: ""}
    for chunk in chunks(speaking, n=3):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert list(streamed.values()) == [c["message"]["content"] for c in three["choices"]]


def test_the_same_seed_gives_the_same_answer_and_none_is_told(speaking):
    assert answered(speaking)["choices"] == answered(speaking)["choices"]
    told = answered(speaking, seed=None)["tiller"]["seed"]
    again = answered(speaking, seed=told)
    assert again["tiller"]["seed"] == told


def test_temperature_zero_does_not_look_at_the_seed(speaking):
    greedy = [answered(speaking, temperature=0, seed=s)["choices"] for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_prompt_that_was_read_before_is_cached(speaking):
    long = [{"role": "user", "content": "the king of the sea and the old house " * 4}]
    answered(speaking, messages=long)
    details = answered(speaking, messages=long)["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] > 0


def test_log_probabilities_have_openais_shape(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=SAID, max_tokens=5, logprobs=True, top_logprobs=3, temperature=0
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        # Greedy: the likeliest token is the one that was taken.
        assert math.isclose(token.top_logprobs[0].logprob, token.logprob, abs_tol=1e-6)
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    without = client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=2)
    assert without.choices[0].logprobs is None


def test_streamed_log_probabilities_are_those_of_the_whole_answer(speaking):
    asked = {"logprobs": True, "top_logprobs": 2, "max_tokens": 6}
    whole = answered(speaking, **asked)["choices"][0]["logprobs"]["content"]
    streamed = [
        token
        for chunk in chunks(speaking, **asked)
        for choice in chunk["choices"]
        for token in (choice["logprobs"] or {}).get("content", [])
    ]
    assert [t["token"] for t in streamed] == [t["token"] for t in whole]
    assert [t["logprob"] for t in streamed] == pytest.approx(
        [t["logprob"] for t in whole], abs=1e-4
    )


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(speaking):
    text = answered(speaking, temperature=0, max_tokens=12)["choices"][0]["message"]["content"]
    stop = text[2:4]
    stopped = answered(speaking, temperature=0, max_tokens=12, stop=stop)
    assert stopped["choices"][0]["message"]["content"] == text[: text.index(stop)]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["tiller"]["choices"][0]["stop"] == stop


def test_a_bias_forces_a_token(speaking):
    forced = answered(speaking, logit_bias={"290": 100}, max_tokens=4, temperature=0)
    tokens = answered(speaking, logit_bias={"290": 100}, max_tokens=4, temperature=0, logprobs=True)
    assert forced["choices"][0]["message"] == tokens["choices"][0]["message"]
    told = tokens["choices"][0]["logprobs"]["content"]
    assert len({t["token"] for t in told}) == 1
    # Told is the model's own distribution, before the bias.
    assert any(t["logprob"] < -0.1 for t in told)


def test_parts_of_text_and_a_developer_are_read(speaking):
    parts = [{"type": "text", "text": "the king "}, {"type": "text", "text": "of the sea"}]
    in_parts = answered(speaking, messages=[{"role": "user", "content": parts}])
    assert in_parts["choices"] == answered(speaking)["choices"]
    by = [
        answered(speaking, messages=[{"role": role, "content": "say that"}, *SAID])["choices"]
        for role in ("developer", "system")
    ]
    assert by[0] == by[1]


def test_keys_without_an_effect_are_taken(speaking):
    beside = {
        "user": "somebody",
        "store": False,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "prompt_cache_key": "x",
    }
    assert answered(speaking, **beside)["choices"] == answered(speaking)["choices"]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"stering": {}}, "unknown_key", "stering"),
        ({"steering": {"concpt": "sea"}}, "unknown_key", "steering.concpt"),
        ({"steering": [{"x": 1}]}, "unknown_key", "steering[0].x"),
        ({"messages": [{"role": "user", "content": "a", "x": 1}]}, "unknown_key", "messages[0].x"),
        ({"extra_body": {"seed": 1}}, "literal_extra_body", "extra_body"),
        ({"tools": [{"type": "function"}]}, "not_offered", "tools"),
        ({"tool_choice": "required"}, "not_offered", "tool_choice"),
        ({"functions": [{"name": "f"}]}, "not_offered", "functions"),
        ({"response_format": {"type": "json_object"}}, "not_offered", "response_format"),
        ({"modalities": ["text", "audio"]}, "not_offered", "modalities"),
        ({"audio": {"voice": "x"}}, "not_offered", "audio"),
        ({"reasoning_effort": "high"}, "not_offered", "reasoning_effort"),
        ({"temperature": 3}, "bad_request", "temperature"),
        ({"messages": []}, "bad_request", "messages"),
        ({"messages": [{"role": "user"}]}, "bad_request", "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "not_offered", "messages[0].role"),
        ({"top_logprobs": 3}, "bad_request", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "bad_request", "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "bad_request", "stream_options"),
        ({"logit_bias": {"100000": 1}}, "bad_generation", "logit_bias"),
        ({"n": 20}, "too_much", "n"),
        ({"max_tokens": 5000}, "too_much", "max_tokens"),
        ({"stop": [str(i) for i in range(17)]}, "too_much", "stop"),
        ({"edits": ["nobody"]}, "unknown_edit", None),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(speaking, changes, code, param):
    status = 404 if code == "unknown_edit" else 422
    told = refused(speaking, status, **changes)
    assert told["code"] == code
    if param is not None:
        assert told["param"] == param
    assert told["message"].count(".") >= 1


def test_a_picture_for_a_model_that_reads_text_is_refused(client):
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    said = [{"role": "user", "content": [{"type": "text", "text": "what is this"}, shown]}]
    with pytest.raises(openai.UnprocessableEntityError) as told:
        client.chat.completions.create(model=MODEL, messages=said)
    assert told.value.code == "not_offered"
    assert "messages[0].content[1]" in told.value.param


def test_a_conversation_that_does_not_fit_is_refused(speaking):
    long = [{"role": "user", "content": "the king of the sea " * 100}]
    assert refused(speaking, 422, messages=long)["code"] == "context_too_long"


def test_models_of_the_other_kind_are_refused_both_ways(speaking, http):
    told = speaking.post("/v1/images/generations", json={"model": MODEL, "prompt": "a boat"})
    assert (told.status_code, told.json()["error"]["code"]) == (409, "wrong_modality")
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    for messages in (SAID, [{"role": "user", "content": [shown]}]):
        told = http.post(PATH, json=body(model="tiny", messages=messages))
        assert (told.status_code, told.json()["error"]["code"]) == (409, "wrong_modality")
    assert refused(speaking, 404, model="nobody")["code"] == "unknown_model"


def test_the_card_says_what_the_model_is(speaking):
    card = speaking.get(f"/v1/models/{MODEL}").json()
    assert card["modality"] == "language"
    assert card["engine"] == "slots"
    assert card["saes"] == ["toy"]
    assert card["context"] >= card["capacity"] > 0
    assert card["streams"] == {"lm": 4} or card["streams"]["lm"] > 0
    assert card["methods"]["sae"]["applies"] is True


@pytest.mark.parametrize("model", ["tiny-lm+", "tiny-lm++", "+"])
def test_nothing_behind_a_plus_is_refused(speaking, model):
    told = speaking.post("/v1/chat/completions", json={"model": model, "messages": USER})
    assert told.status_code in (404, 422), told.text


def test_a_message_without_words_is_refused_and_an_earlier_empty_answer_is_not_a_crash(speaking):
    body = {"model": "tiny-lm", "max_tokens": 2}
    for role in ("user", "assistant"):
        messages = [{"role": role, "content": None}, *USER]
        told = speaking.post("/v1/chat/completions", json={**body, "messages": messages})
        assert told.status_code < 500, told.text


USER = [{"role": "user", "content": "the king"}]
