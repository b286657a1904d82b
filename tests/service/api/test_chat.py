"""Chat on a tiny Llama, by the real OpenAI client and by raw HTTP."""

import openai
import pytest

MODEL = "tiny-lm"
SAID = [{"role": "user", "content": "the king of the sea"}]


@pytest.fixture(scope="module")
def client(speaker_url):
    return openai.OpenAI(base_url=f"{speaker_url}/v1", api_key="unused", max_retries=0)


def body(**changes):
    return {"model": MODEL, "messages": SAID, "max_tokens": 8, "seed": 3, **changes}


def answered(http, **changes):
    answer = http.post("/v1/chat/completions", json=body(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_openai_client_chats_without_knowing_us(client):
    answer = client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    print(answer)
