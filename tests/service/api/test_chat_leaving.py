"""Who leaves, who comes too late, who is one too many: rows of a language model are freed."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest

from service.orders import TextOrder, Wrote

MODEL = "tiny-lm"
PATH = "/v1/chat/completions"
SAID = [{"role": "user", "content": "the king of the sea"}]


@pytest.fixture(scope="module")
def narrow(speaker_settings_for, serving):
    """A service with two slots and room for two who wait."""
    settings = speaker_settings_for(model={"slots": 2, "max_waiting": 2})
    with serving(settings) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def url(narrow):
    return narrow[0]


@pytest.fixture(scope="module")
def host(narrow):
    return narrow[1].hosts[MODEL].ready


def body(**changes):
    # The end mark is ruled out: the answer is as long as asked.
    endless = {"logit_bias": {"2": -100}, "max_tokens": 200}
    return {"model": MODEL, "messages": SAID, "seed": 3, **endless, **changes}


def active(host):
    return host.engine.load()["active"]


def wait_until(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.001)


def test_a_caller_that_stops_listening_frees_its_row_within_a_step(host):
    wait_until(lambda: active(host) == 0)
    order = TextOrder(id="leaves", messages=tuple(SAID), max_tokens=200, streamed=True, seeds=(3,))

    async def leave():
        events = host.write(order)
        while not isinstance(await anext(events), Wrote):
            pass
        assert active(host) == 1
        await events.aclose()
        return host.engine.load()["steps"]

    steps = asyncio.run(leave())
    wait_until(lambda: active(host) == 0)
    assert host.engine.load()["steps"] - steps <= 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(url, host, stream):
    wait_until(lambda: active(host) == 0)
    before = host.engine.load()["written_tokens"]
    raw = json.dumps(body(stream=stream)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}"
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as leaving:
        leaving.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + raw)
        wait_until(lambda: active(host) == 1)
    wait_until(lambda: active(host) == 0)
    assert host.engine.load()["written_tokens"] - before < 199


def test_the_openai_client_that_closes_its_stream_frees_the_row(url, host):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
    before = host.engine.load()["written_tokens"]
    asked = {"model": MODEL, "messages": SAID, "max_tokens": 200, "logit_bias": {"2": -100}}
    with client.chat.completions.create(**asked, stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: active(host) == 0)
    assert host.engine.load()["written_tokens"] - before < 199


def test_who_finds_no_place_is_told_when_to_come_back_and_nobody_else_notices(url):
    asked = body(max_tokens=60)
    alone = httpx2.post(url + PATH, json=asked, timeout=60).json()["choices"]
    barrier = threading.Barrier(10)

    def call(_):
        barrier.wait()
        return httpx2.post(url + PATH, json=asked, timeout=60)

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(call, range(10)))
    assert {a.status_code for a in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "full"
        else:
            assert answer.json()["choices"] == alone


def test_more_choices_than_can_wait_are_refused(url):
    told = httpx2.post(url + PATH, json=body(n=5), timeout=60)
    assert told.status_code == 422
    assert told.json()["error"]["param"] == "n"


def test_an_answer_that_takes_too_long_ends_with_its_deadline(speaker_settings_for, serving):
    hurried = {"port": 0, "drain_seconds": 5.0, "request_seconds": 0.05}
    settings = speaker_settings_for(server=hurried)
    with serving(settings) as (address, _):
        told = httpx2.post(address + PATH, json=body(), timeout=60)
        assert told.status_code == 504
        assert told.json()["error"]["code"] == "deadline_exceeded"
        text = httpx2.post(address + PATH, json=body(stream=True), timeout=60).text
        assert '"code":"deadline_exceeded"' in text
        assert text.rstrip().endswith("data: [DONE]")


def test_nothing_is_admitted_while_draining(speaker_settings_for, serving):
    with serving(speaker_settings_for()) as (address, bench):
        bench.draining.set()
        told = httpx2.post(address + PATH, json=body(), timeout=60)
    assert told.status_code == 503
    assert told.headers["retry-after"]
