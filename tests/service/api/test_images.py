import base64
import io
import json
import socket
import threading
import time

import httpx2
import openai
import pytest
from PIL import Image

from service.recipe import Recipe

MODEL = "tiny"
PROMPT = "the king of the sea"


def body(**changes):
    return {"model": MODEL, "prompt": PROMPT, "seed": 3, **changes}


def drawn(http, **changes):
    answer = http.post("/v1/images/generations", json=body(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http, status, **changes):
    answer = http.post("/v1/images/generations", json=body(**changes))
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def shown(answer):
    """The pixels, without what the pictures say of themselves."""
    return [Image.open(io.BytesIO(png)).tobytes() for png in pngs(answer)]


def pngs(answer):
    return [base64.b64decode(d["b64_json"]) for d in answer["data"]]


@pytest.fixture(scope="session")
def openai_client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def test_the_openai_client_draws_without_knowing_us(openai_client):
    answer = openai_client.images.generate(model=MODEL, prompt=PROMPT, n=2, size="16x16")
    assert len(answer.data) == 2
    picture = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert picture.size == (16, 16)


def test_extra_body_of_the_openai_client_arrives_as_top_level_keys(openai_client, edit):
    extra = {"edits": [edit], "seed": 5}
    answer = openai_client.images.generate(model=MODEL, prompt=PROMPT, extra_body=extra)
    told = answer.model_dump()["tiller"]
    assert told["edits"][0]["name"] == edit
    assert told["images"][0]["seed"] == 5


def test_the_answer_says_what_was_applied(http, edit):
    told = drawn(http, edits=[{"name": edit, "strength": 0.5}])["tiller"]
    assert told["edits"] == [
        {"name": edit, "version": 1, "digest": told["edits"][0]["digest"], "strength": 0.5}
    ]
    assert told["images"][0]["rows_changed"] == 1
    assert told["images"][0]["tokens_changed"] > 0
    assert told["images"][0]["mode"] == "exact"
    assert told["images"][0]["denoiser_dtype"] == "float32"
    assert told["fingerprint"]


def test_each_picture_has_its_own_seed_and_is_the_one_drawn_alone(http):
    both = drawn(http, n=2)
    assert [i["seed"] for i in both["tiller"]["images"]] == [3, 4]
    assert pngs(both)[1] == pngs(drawn(http, seed=4))[0]


def test_an_edit_changes_the_picture_and_strength_zero_does_not(http, edit):
    plain = shown(drawn(http))
    assert shown(drawn(http, edits=[edit])) != plain
    assert shown(drawn(http, edits=[{"name": edit, "strength": 0.0}])) == plain


def test_a_model_name_can_carry_edits(http, edit):
    by_name = drawn(http, model=f"{MODEL}+{edit}@1")
    assert pngs(by_name) == pngs(drawn(http, edits=[f"{edit}@1"]))
    assert by_name["tiller"]["edits"][0]["version"] == 1


def test_a_variant_is_a_model_name_for_any_openai_client(http, openai_client, edit):
    made = http.put("/v1/variants/royal", json={"model": MODEL, "edits": [edit]})
    assert made.status_code == 200, made.text
    assert "royal" in {m.id for m in openai_client.models.list()}
    answer = openai_client.images.generate(model="royal", prompt=PROMPT, extra_body={"seed": 3})
    assert base64.b64decode(answer.data[0].b64_json) == pngs(drawn(http, edits=[edit]))[0]


def test_a_variant_keeps_its_strengths(http, edit):
    half = {"name": edit, "strength": 0.5}
    http.put("/v1/variants/half", json={"model": MODEL, "edits": [half]})
    assert pngs(drawn(http, model="half")) == pngs(drawn(http, edits=[half]))


def test_an_unedited_caller_beside_edited_ones_gets_the_picture_it_gets_alone(url, http, edit):
    alone = pngs(drawn(http))[0]
    found, barrier = {}, threading.Barrier(4)

    def call(i):
        with httpx2.Client(base_url=url, timeout=60) as own:
            barrier.wait()
            edits = [] if i == 2 else [{"name": edit, "strength": 1.0 + 0.1 * i}]
            found[i] = shown(drawn(own, edits=edits, steps=20))[0]

    plain = shown(drawn(http, steps=20))[0]
    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[2] == plain
    assert len(set(found.values())) == 4
    assert pngs(drawn(http))[0] == alone


def test_accept_png_answers_with_the_bytes_and_says_what_was_applied(http):
    answer = http.post("/v1/images/generations", json=body(), headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == pngs(drawn(http))[0]
    assert json.loads(answer.headers["x-tiller"])["images"][0]["seed"] == 3


def test_accept_png_carries_one_picture_only(http):
    answer = http.post("/v1/images/generations", json=body(n=2), headers={"Accept": "image/png"})
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "more_than_one_picture"


def test_a_url_gives_the_same_bytes_and_a_wrong_one_is_gone(http):
    address = drawn(http, response_format="url")["data"][0]["url"]
    assert http.get(address).content == pngs(drawn(http))[0]
    assert http.get(address.replace(".png", "x.png")).status_code == 404


def test_the_negative_prompt_may_stay_plain(http, edit):
    same = shown(drawn(http, edits=[edit], negative_prompt=PROMPT))
    plain = shown(drawn(http, edits=[edit], negative_prompt=PROMPT, negative_edits="plain"))
    assert same != plain


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 5},
        {"guidance_scale": 2.0},
        {"sampler": "euler"},
        {"negative_prompt": "a red boat"},
        {"size": "32x16"},
        {"seed": 4},
    ],
)
def test_each_key_of_a_row_reaches_it(http, changes):
    told = {"sampler": "ddim", "guidance_scale": 5.0}
    assert shown(drawn(http, **told | changes)) != shown(drawn(http, **told))


def test_the_mode_is_a_setting_of_the_model_and_told_in_every_answer(settings_for, serving):
    with (
        serving(settings_for(model={"mode": "fast"})) as (url, _),
        httpx2.Client(base_url=url, timeout=60) as http,
    ):
        answer = drawn(http)
        assert http.get(f"/v1/models/{MODEL}").json()["mode"] == "fast"
        assert answer["tiller"]["mode"] == answer["tiller"]["images"][0]["mode"] == "fast"
        png = http.post("/v1/images/generations", json=body(), headers={"Accept": "image/png"})
        assert json.loads(png.headers["x-tiller"])["mode"] == "fast"
        said = Recipe.read(png.content)
        assert (said.mode, said.slot, said.batch) == ("fast", 0, 2)
        with http.stream("POST", "/v1/images/generations", json=body(stream=True)) as streamed:
            lines = [line[6:] for line in streamed.iter_lines() if line.startswith("data: {")]
        told = [json.loads(line)["tiller"] for line in lines if '"tiller":' in line]
        assert [of["mode"] for of in told] == ["fast", "fast"]
        assert told[-1]["images"][0]["mode"] == "fast"


def test_without_a_seed_one_is_drawn_and_told(http):
    first, second = drawn(http, seed=None), drawn(http, seed=None)
    seed = first["tiller"]["images"][0]["seed"]
    assert seed != second["tiller"]["images"][0]["seed"]
    assert pngs(drawn(http, seed=seed)) == pngs(first)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"edit": ["x"]}, "edit"),
        ({"edits": [{"name": "x", "strenght": 1.0}]}, "edits[0].strenght"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"steps": 201}, "steps"),
        ({"size": "65x64"}, "size"),
        ({"size": "64"}, "size"),
        ({"size": "15x16"}, "size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**53}, "seed"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"prompt": "far " * 100}, "prompt"),
        ({"sampler": "best"}, "sampler"),
        ({"edits": [{"name": "x", "strength": 2.5}]}, "edits[0].strength"),
        ({"edits": ["x"] * 65}, "edits"),
        ({"response_format": "jpeg"}, "response_format"),
        ({"style": "vivid"}, "style"),
        ({"quality": "hd"}, "quality"),
        ({"model": "other"}, "model"),
        ({"edits": ["nobody"]}, "edits"),
    ],
)
def test_what_cannot_be_done_is_refused_and_named(http, changes, param):
    answer = http.post("/v1/images/generations", json=body(**changes))
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("key", ["prompt", "negative_prompt"])
def test_half_a_surrogate_pair_is_refused(http, key):
    raw = json.dumps(body(**{key: "a \ud800 frog"}))
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/images/generations", content=raw, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["param"] == key


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(http, number):
    raw = json.dumps(body())[:-1] + f', "guidance_scale": {number}}}'
    headers = {"Content-Type": "application/json"}
    answer = http.post("/v1/images/generations", content=raw, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "guidance_scale"


def test_a_literal_extra_body_is_refused_with_the_remedy(http):
    error = refused(http, 422, extra_body={"edits": ["x"]})
    assert error["code"] == "literal_extra_body"
    assert "top-level" in error["message"]


def test_one_version_under_two_names_is_refused(http, edit):
    error = refused(http, 422, edits=[edit, f"{edit}@1"])
    assert error["code"] == "edit_twice"


def test_a_query_that_means_nothing_is_refused(http):
    answer = http.post("/v1/images/generations?seed=4", json=body())
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "seed"


def test_a_stream_tells_steps_and_ends_with_the_picture(http):
    with http.stream("POST", "/v1/images/generations", json=body(stream=True, n=2)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line[6:]) for line in lines[:-1]]
    assert events[0]["type"] == "tiller.applied"
    steps = [e for e in events if e["type"] == "tiller.step" and e["index"] == 1]
    assert [e["done"] for e in steps] == [1, 2, 3]
    pictures = {e["index"]: e for e in events if e["type"] == "image_generation.completed"}
    assert [base64.b64decode(pictures[i]["b64_json"]) for i in (0, 1)] == pngs(drawn(http, n=2))


def test_the_openai_client_reads_our_stream(openai_client, http):
    events = openai_client.images.generate(
        model=MODEL, prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 3}
    )
    seen = {}
    for event in events:
        seen.setdefault(event.type, []).append(event)
    assert len(seen["image_generation.partial_image"]) == 2
    last = seen["image_generation.completed"][0]
    assert base64.b64decode(last.b64_json) == pngs(drawn(http))[0]


def test_a_stream_that_cannot_begin_is_a_status_not_an_event(http):
    assert refused(http, 404, stream=True, edits=["nobody"])["code"] == "unknown_edit"
    assert refused(http, 422, stream=True, sampler="best")["param"] == "sampler"


def active(http):
    text = http.get("/metrics").text
    return {
        what: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        for what in ("active", "waiting")
        if line.startswith(f'tiller_engine{{model="{MODEL}",what="{what}"}}')
    }


def counted(http):
    """How many image requests ended how, and how many pictures were drawn."""
    found = {"200": 0.0, "499": 0.0, "pictures": 0.0}
    for line in http.get("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("tiller_images_total"):
            found["pictures"] += float(value)
        for status in ("200", "499"):
            labels = f'method="POST",route="/v1/images/generations",status="{status}"'
            if name == f"tiller_requests_total{{{labels}}}":
                found[status] += float(value)
    return found


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row(url, http, stream):
    raw = json.dumps(body(stream=stream, steps=200, n=3)).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}"
    address = url.removeprefix("http://").split(":")
    before = counted(http)
    with socket.create_connection((address[0], int(address[1]))) as leaving:
        leaving.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + raw)
        wait_until(lambda: active(http)["active"] == 3)
    left = time.monotonic()
    wait_until(lambda: active(http)["active"] == 0)
    freed = time.monotonic() - left
    # A stream had said 200 before it broke; neither way has drawn a picture.
    wanted = {**before, "200" if stream else "499": before["200" if stream else "499"] + 1}
    wait_until(lambda: counted(http) == wanted)
    whole = drawn(http, steps=200, n=3)["tiller"]["images"][0]["seconds"]
    assert freed < whole / 2


def test_a_full_engine_answers_429_with_a_time_and_draws_the_others(url, http):
    statuses, waits = [], []

    def call(i):
        with httpx2.Client(base_url=url, timeout=120) as own:
            answer = own.post("/v1/images/generations", json=body(n=4, steps=30, seed=100 * i))
            statuses.append(answer.status_code)
            if answer.status_code == 429:
                waits.append(int(answer.headers["retry-after"]))
                assert answer.json()["error"]["type"] == "rate_limit_error"

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 429}
    assert all(wait >= 1 for wait in waits)
    wait_until(lambda: active(http)["active"] == 0)


def test_a_picture_that_takes_too_long_is_a_504(settings_for, serving):
    settings = settings_for()
    quick = settings.server.model_copy(update={"request_seconds": 0.2})
    with (
        serving(settings.model_copy(update={"server": quick})) as (url, _),
        httpx2.Client(base_url=url, timeout=60) as http,
    ):
        assert refused(http, 504, steps=200, n=4)["code"] == "deadline_exceeded"


def test_a_preset_of_another_model_is_not_told_to_register_a_fact(http, bench):
    kept = {"features": [{"sae": "toy", "feature": 1, "strength": 1.0}]}
    put = bench.registry.presets.put
    put("default", "steering", "elsewhere", "some-lm", "0" * 64, kept, actor="test")
    told = refused(http, 409, model=f"{MODEL}+elsewhere@1")
    assert (told["code"], told["param"]) == ("wrong_model", "model")
    assert "fact" not in told["message"]
    assert "put the preset" in told["message"]
