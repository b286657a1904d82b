"""The service on Ray Serve, started once: what only several processes can get wrong."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from PIL import Image

from evaluation.circuits.study import read_importances
from service import running
from service.client import Tiller, TillerError
from tests.service.shown import SEER, asking, written
from tests.service.shown import drawn as drawn_photo

pytestmark = pytest.mark.cluster

MODEL, PROMPT, SLOTS, WAITING = "tiny", "the king of the sea", 2, 2
LONG = 900
"""Steps of a picture that still stands in its batch when a busy machine is asked about it."""
PATH, LENS = "/v1/images/generations", "/v1/images/lens"
CONFIG = """
[server]
drain_seconds = 60

[limits]
steps = 1000

[[models]]
name = "tiny"
path = {path}
slots = {slots}
max_waiting = {waiting}
steps = 3
memory_bytes = 0

[[models]]
name = "tiny-lm"
path = {speaker}
slots = 4
max_waiting = 8
memory_bytes = 0
saes = [{{ id = "toy", path = {sae} }}]

[[models]]
name = "tiny-vl"
path = {seer}
slots = 2
capacity = 256
max_waiting = 4
memory_bytes = 0
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory, tiny_sd_folder, tiny_lm_folder, tiny_vl_folder, tiny_sae_folder):
    """(url, process) of `tiller serve`; the last test stops it, and this one if that did not."""
    home = tmp_path_factory.mktemp("cluster")
    config = home / "serve.toml"
    folders = {
        "path": tiny_sd_folder,
        "speaker": tiny_lm_folder,
        "seer": tiny_vl_folder,
        "sae": tiny_sae_folder,
    }
    told = {key: json.dumps(str(folder)) for key, folder in folders.items()}
    config.write_text(CONFIG.format(slots=SLOTS, waiting=WAITING, **told))
    port = running.free_port()
    words = ["serve", "--config", str(config), "--port", str(port)]
    program = [sys.executable, "-c", "from service.cli import main; main()", *words]
    url, log = f"http://127.0.0.1:{port}", home / "serve.log"
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 - our own program
            program,
            stdout=output,
            stderr=output,
            env=running._environment(home),
            start_new_session=True,
        )
        try:
            running._await_ready(url, child, log)
            yield url, child, log
        finally:
            running.stop(child)


@pytest.fixture(scope="module")
def cluster_url(started):
    return started[0]


@pytest.fixture(scope="module")
def client(cluster_url):
    return openai.OpenAI(base_url=f"{cluster_url}/v1", api_key="unused", max_retries=0)


def body(**changes):
    return {"model": MODEL, "prompt": PROMPT, "seed": 3, **changes}


def drawn(url, **changes):
    return httpx2.post(url + PATH, json=body(**changes), timeout=120)


def shown(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture))).size


def active(url, model=MODEL):
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    told = f'tiller_engine{{model="{model}",what="active"}}'
    return next((float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(told)), 0.0)


def wait_until(condition, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def test_the_openai_client_draws_and_lists(client):
    assert MODEL in {m.id for m in client.models.list()}
    answer = client.images.generate(model=MODEL, prompt=PROMPT, n=2, extra_body={"seed": 3})
    assert len(answer.data) == 2
    assert {shown(d.b64_json) for d in answer.data} == {shown(answer.data[0].b64_json)}
    again = client.images.generate(model=MODEL, prompt=PROMPT, extra_body={"seed": 4})
    assert again.data[0].b64_json == answer.data[1].b64_json


def test_the_openai_client_streams_previews_and_the_picture(client):
    asked = {"model": MODEL, "prompt": PROMPT, "extra_body": {"seed": 3}}
    whole = client.images.generate(**asked)
    events = list(client.images.generate(**asked, stream=True, partial_images=1))
    kinds = [e.type for e in events]
    assert "image_generation.partial_image" in kinds
    assert kinds[-1] == "image_generation.completed"
    assert events[-1].b64_json == whole.data[0].b64_json


def test_a_refusal_crosses_the_processes_as_what_it_is(client, cluster_url):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.images.generate(model=MODEL, prompt=PROMPT, extra_body={"sampler": "best"})
    assert refused.value.code == "unknown_sampler"
    files = {"file": ("delta", b"PK\x03\x04junk")}
    form = {"name": "junk", "model": MODEL}
    told = httpx2.post(f"{cluster_url}/v1/edits/import", data=form, files=files)
    assert (told.status_code, told.json()["code"]) == (422, "bad_adapter")


SPEAKER = "tiny-lm"
SAID = [{"role": "user", "content": "the king of arda"}]
STEERING = {
    "features": [{"sae": "toy", "feature": 7, "strength": 3}],
    "min_output_score": 0,
    "on_low_score": "allow",
}


def test_the_openai_client_chats_steered_and_streamed(client):
    asked = {"model": SPEAKER, "messages": SAID, "max_tokens": 8, "seed": 3}
    plain = client.chat.completions.create(**asked)
    steered = client.chat.completions.create(
        **asked, extra_body={"steering": STEERING, "compare": True}
    )
    said = steered.choices[0].message.content
    assert said != plain.choices[0].message.content
    told = steered.model_dump()["tiller"]
    assert told["plain"][0]["message"]["content"] == plain.choices[0].message.content
    assert told["steering"][0]["features"][0]["sae_digest"]
    stream = client.chat.completions.create(**asked, stream=True, extra_body={"steering": STEERING})
    assert "".join(c.choices[0].delta.content or "" for c in stream) == said
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(**asked, extra_body={"steering": {"mode": "amp"}})
    assert refused.value.code == "bad_steering"
    wrong = {"features": [{"sae": "toy", "feature": 99, "strength": 1}]}
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**asked, extra_body={"steering": wrong})
    assert unknown.value.code == "unknown_feature"


def test_a_picture_crosses_the_processes_and_is_decoded_where_the_model_is(client):
    photo = written(drawn_photo())
    asked = {"model": SEER, "messages": [asking(photo, "a cat")], "max_tokens": 6, "temperature": 0}
    plan = {"backpatch": {"source": 3, "target": 1}}
    whole = client.chat.completions.create(**asked, extra_body={**plan, "compare": True})
    told = whole.model_dump()["tiller"]
    assert told["backpatch"]["visual_tokens"] == 9
    assert told["choices"][0]["tokens_backpatched"] == 9
    stream = list(client.chat.completions.create(**asked, stream=True, extra_body=plan))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said == whole.choices[0].message.content
    cut = [asking(photo[: len(photo) // 2], "a cat")]
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(**{**asked, "messages": cut})
    assert refused.value.code == "not_an_image"
    assert refused.value.param == "messages[0].content[0].image_url.url"


def test_a_client_that_leaves_a_chat_frees_its_row(client, cluster_url):
    endless = {"max_tokens": 200, "logit_bias": {"2": -100}}
    with client.chat.completions.create(
        model=SPEAKER, messages=SAID, stream=True, **endless
    ) as stream:
        next(iter(stream))
    wait_until(lambda: active(cluster_url, SPEAKER) == 0)
    written = httpx2.get(f"{cluster_url}/metrics").text
    counted = f'tiller_engine{{model="{SPEAKER}",what="written_tokens"}}'
    assert counted in written


def test_a_full_model_answers_429_with_a_time_and_draws_the_others(cluster_url):
    alone = drawn(cluster_url, steps=40).json()["data"]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: drawn(cluster_url, steps=40), range(16)))
    strange = [a.text for a in answers if a.status_code not in (200, 429)]
    assert not strange
    assert {a.status_code for a in answers} == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
        else:
            assert answer.json()["data"] == alone
    assert drawn(cluster_url).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(cluster_url, stream):
    wait_until(lambda: active(cluster_url) == 0)
    raw = json.dumps(body(stream=stream, steps=LONG)).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}"
    address = cluster_url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as leaving:
        leaving.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + raw)
        wait_until(lambda: active(cluster_url) == 1)
    left = time.monotonic()
    wait_until(lambda: active(cluster_url) == 0)
    freed = time.monotonic() - left
    whole = drawn(cluster_url, steps=LONG).json()["tiller"]["images"][0]["seconds"]
    assert freed < whole / 2


def looked(url, **changes):
    return httpx2.post(url + LENS, json=body(steps=2, **changes), timeout=120)


def test_a_sweep_over_all_layers_is_drawn_and_its_sheet(cluster_url):
    answer = looked(cluster_url)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    ordinary = told["tiller"]["lens"]["ordinary"]
    assert [picture["layer"] for picture in told["data"]] == list(range(ordinary + 1))
    assert len({picture["b64_json"] for picture in told["data"]}) == ordinary + 1
    assert shown(told["sheet"]["b64_json"])[0] > 128 * (ordinary + 1)
    refused = looked(cluster_url, encoder="text_9")
    assert 400 <= refused.status_code < 500
    assert "text" in refused.json()["error"]["message"]


def test_a_streamed_sweep_tells_each_picture_and_the_sheet(cluster_url):
    whole = looked(cluster_url, layers=[0, 1]).json()
    lines = looked(cluster_url, layers=[0, 1], stream=True).text.splitlines()
    said = [x.removeprefix("data: ") for x in lines if x.startswith("data: ")]
    assert said[-1] == "[DONE]"
    events = [json.loads(x) for x in said[:-1]]
    assert events[0]["type"] == "tiller.applied"
    assert events[-1]["type"] == "lens.sheet"
    pictures = {e["layer"]: e["b64_json"] for e in events if e["type"] == "lens.picture"}
    assert pictures == {p["layer"]: p["b64_json"] for p in whole["data"]}


def test_a_client_that_leaves_a_streamed_sweep_frees_its_rows(cluster_url):
    wait_until(lambda: active(cluster_url) == 0)
    asked = body(steps=200, stream=True)
    with httpx2.stream("POST", cluster_url + LENS, json=asked, timeout=60) as answer:
        assert answer.status_code == 200
        wait_until(lambda: active(cluster_url) == SLOTS)
    left = time.monotonic()
    wait_until(lambda: active(cluster_url) == 0)
    freed = time.monotonic() - left
    whole = drawn(cluster_url, steps=200).json()["tiller"]["images"][0]["seconds"]
    assert freed < 2 * whole  # and not the whole sweep, five pictures two at a time


def test_an_evaluation_is_found_by_a_replica_and_its_files_are_there_for_the_gateway(cluster_url):
    frames = ("the {} of arda", "of the {}", "{} of the king", "the {}")
    pairs = [
        {"clean": f.format(a), "corrupted": f.format(b), "correct": a, "incorrect": b}
        for f in frames
        for a, b in (("king", "tree"), ("tree", "king"))
    ]
    asked = {"model": SPEAKER, "params": {"method": "random", "sizes": [0.5, 1.0], "margin": 0.0}}
    with Tiller(cluster_url) as tiller:
        rows = tiller.datasets.make(model=SPEAKER, pairs=pairs)
        assert rows["pairs"]["kept"] == len(pairs)
        begun = tiller.evaluations.start("circuit", dataset=rows["id"], **asked)
        result = tiller.jobs.wait(begun["id"])["result"]
        assert [point["k"] for point in result["report"]["curve"]] == [0.5, 1.0]
        graph, _, _ = read_importances(
            tiller.evaluations.artifact(result["evaluation"], "importances.safetensors")
        )
        assert graph.edges == result["report"]["edges"]
        again = tiller.evaluations.start("circuit", dataset=rows["id"], **asked)
        assert again["cache_hit"] and again["evaluation"] == result["evaluation"]
        # A policy that the gateway kept holds in the replica that steers.
        tiller.evaluations.set_policy(model=SPEAKER, feature_gate="required")
        with pytest.raises(TillerError, match="No feature_gate was passed"):
            tiller.complete("the king", model=SPEAKER, max_tokens=2, steering=STEERING)
        tiller.evaluations.set_policy(model=SPEAKER)
        assert tiller.complete("the king", model=SPEAKER, max_tokens=2, steering=STEERING)


def test_on_sigterm_the_row_in_flight_is_finished_and_nothing_is_left(started):
    url, child, log = started
    before = drawn(url, steps=120).json()["data"]
    answers = []
    caller = threading.Thread(target=lambda: answers.append(drawn(url, steps=120)))
    caller.start()
    wait_until(lambda: active(url) == 1)
    os.kill(child.pid, signal.SIGTERM)
    caller.join(90)
    assert [a.status_code for a in answers] == [200], log.read_text()[-2000:]
    assert answers[0].json()["data"] == before
    assert child.wait(90) == 0
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/livez", timeout=5)
