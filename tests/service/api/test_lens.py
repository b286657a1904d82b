import base64
import io
import json
import socket
import time

import httpx2
import pytest
from PIL import Image

from service.recipe import Recipe

MODEL = "tiny"
PROMPT = "the king of the sea"
LAYERS = [0, 1, 2, 3, 4]


def body(**changes):
    return {"model": MODEL, "prompt": PROMPT, "seed": 3, **changes}


def asked(http, **changes):
    return http.post("/v1/images/lens", json=body(**changes))


def seen(http, **changes):
    answer = asked(http, **changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def pngs(answer):
    return [base64.b64decode(d["b64_json"]) for d in answer["data"]]


def ordinary(http, **changes):
    answer = http.post("/v1/images/generations", json=body(**changes))
    assert answer.status_code == 200, answer.text
    return pngs(answer.json())


def test_every_layer_has_its_picture_and_the_last_is_the_ordinary_one(http):
    answer = seen(http)
    assert [d["layer"] for d in answer["data"]] == LAYERS
    assert len(set(pngs(answer))) == len(LAYERS)
    assert pngs(answer)[-1] == ordinary(http)[0]


def test_each_picture_says_what_it_shows(http):
    shown = seen(http, layers=[2])["data"][0]
    del shown["b64_json"]
    assert shown == {
        "layer": 2,
        "seed": 3,
        "norm": "final norm",
        "beside": "none",
        "noise": "shared",
        "mode": "exact",
        "batch": 8,
    }


def test_the_answer_says_what_was_applied(http, edit):
    told = seen(http, layers=[4, 0], edits=[edit])["tiller"]
    assert told["edits"][0]["name"] == edit and told["fingerprint"]
    assert told["lens"] == {
        "encoder": "text",
        "layers": [4, 0],
        "ordinary": 4,
        "norm": "final norm",
        "noise": "shared",
        "beside": "none",
        "beside_paths": [],
        "negative_prompt": "at the ordinary layer",
    }
    assert [i["layer"] for i in told["images"]] == [4, 0]
    assert [i["ordinary"] for i in told["images"]] == [True, False]
    assert told["images"][0]["patch"] == told["patch"] != told["images"][1]["patch"]
    assert all(i["tokens_changed"] > 0 for i in told["images"])


@pytest.mark.parametrize(
    ("layers", "meant"),
    [
        ("all", LAYERS),
        (None, LAYERS),
        ([3, 0], [3, 0]),
        ({"step": 2}, [0, 2, 4]),
        ({"start": 1, "stop": 3}, [1, 2]),
    ],
)
def test_layers_are_named_by_list_by_range_or_all(http, layers, meant):
    told = {} if layers is None else {"layers": layers}
    assert [d["layer"] for d in seen(http, **told)["data"]] == meant


def test_each_layer_has_n_seeds_and_they_are_the_same_for_all_layers(http):
    answer = seen(http, layers=[1, 4], n=2)
    assert [(d["layer"], d["seed"]) for d in answer["data"]] == [(1, 3), (1, 4), (4, 3), (4, 4)]
    assert pngs(answer)[2:] == ordinary(http, n=2)
    alone = seen(http, layers=[1], seed=4)
    assert pngs(alone)[0] == pngs(answer)[1]


def test_a_layer_is_the_same_to_the_bit_in_a_sweep_and_by_itself(http):
    swept = pngs(seen(http, n=3))
    assert pngs(seen(http, layers=[2], n=3)) == swept[6:9]


def test_the_references_noise_differs_from_layer_to_layer(http):
    shared, reference = pngs(seen(http)), pngs(seen(http, noise="per_layer"))
    assert shared[0] == reference[0]
    assert all(a != b for a, b in zip(shared[1:], reference[1:], strict=True))
    assert {d["noise"] for d in seen(http, layers=[0], noise="per_layer")["data"]} == {"per_layer"}


def test_the_sheet_has_a_column_per_layer_and_a_row_per_seed(http):
    one, four = (
        Image.open(io.BytesIO(base64.b64decode(seen(http, n=n)["sheet"]["b64_json"])))
        for n in (1, 4)
    )
    assert one.format == four.format == "PNG"
    assert one.width == four.width > 5 * 128
    assert four.height - one.height > 3 * 128


def test_accept_png_answers_with_the_sheet(http):
    headers = {"Accept": "image/png"}
    answer = http.post("/v1/images/lens", json=body(layers=[0, 4], n=2), headers=headers)
    assert answer.headers["content-type"] == "image/png"
    wanted = seen(http, layers=[0, 4], n=2)["sheet"]["b64_json"]
    assert answer.content == base64.b64decode(wanted)
    assert json.loads(answer.headers["x-tiller"])["lens"]["layers"] == [0, 4]
    both = http.post("/v1/images/lens", json=body(stream=True), headers=headers)
    assert both.status_code == 422 and both.json()["error"]["param"] == "stream"


def test_addresses_give_the_same_bytes(http):
    by_url, direct = (seen(http, layers=[0, 4], response_format=how) for how in ("url", "b64_json"))
    assert [http.get(d["url"]).content for d in by_url["data"]] == pngs(direct)
    wanted = base64.b64decode(direct["sheet"]["b64_json"])
    assert http.get(by_url["sheet"]["url"]).content == wanted


def test_an_edit_shows_from_the_layer_behind_its_block_on(http, edit):
    version = http.get(f"/v1/edits/{edit}/versions/1").json()
    block = version["header"]["fit"]["text_encoder"]["block"]
    plain = pngs(seen(http))
    edited = pngs(seen(http, edits=[edit], negative_edits="plain"))
    changed = [layer for layer in LAYERS if pixels(plain[layer]) != pixels(edited[layer])]
    assert changed == LAYERS[block + 1 :]


def pixels(png):
    return Image.open(io.BytesIO(png)).tobytes()


def test_a_picture_of_a_layer_says_so_and_an_ordinary_one_does_not(http):
    first, last = pngs(seen(http, layers=[1, 4]))
    assert Recipe.read(first).lens == {
        "encoder": "text",
        "layer": 1,
        "beside": "none",
        "draw": 0,
    }
    assert Recipe.read(last).lens is None


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"layers": [5]}, "layers"),
        ({"layers": [-1]}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [1, 1]}, "layers"),
        ({"layers": [True]}, "layers[0]"),
        ({"layers": [1.5]}, "layers[0]"),
        ({"layers": "some"}, "layers"),
        ({"layers": 3}, "layers"),
        ({"layers": {"stop": 6}}, "layers"),
        ({"layers": {"start": 4, "stop": 1}}, "layers"),
        ({"layers": {"step": 0}}, "layers.step"),
        ({"layers": {"sotp": 3}}, "layers.sotp"),
        ({"layers": list(range(1001))}, "layers"),
        ({"encoder": "text_2"}, "encoder"),
        ({"encoder": ""}, "encoder"),
        ({"beside": "empty"}, "beside"),
        ({"noise": "own"}, "noise"),
        ({"layer": 3}, "layer"),
        ({"n": 11}, "n"),
        ({"steps": 201}, "steps"),
        ({"prompt": "far " * 100}, "prompt"),
        ({"sampler": "best"}, "sampler"),
        ({"model": "other"}, "model"),
        ({"edits": ["nobody"]}, "edits"),
        ({"style": "vivid"}, "style"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_looked_at_is_refused_and_named(http, changes, param, stream):
    answer = asked(http, stream=stream, **changes)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["code"] and error["type"]


def test_a_layer_that_is_not_there_is_refused_with_the_valid_range(http):
    answer = asked(http, layers=[0, 7])
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "bad_layer"
    assert "layer 7 of text" in error["message"] and "0 (" in error["message"]
    assert "to 4 (" in error["message"]


def test_a_family_that_cannot_be_looked_at_is_refused_with_the_reason(http, bench, monkeypatch):
    family = bench.hosts[MODEL].host.family
    monkeypatch.setattr(family, "applies", {"diffusion_lens": "it reads a stack of layers."})
    answer = asked(http)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "method_not_applicable"
    assert "stack of layers" in answer.json()["error"]["message"]


def test_more_pictures_than_the_operator_allows_are_refused(settings_for, serving):
    settings = settings_for()
    few = settings.limits.model_copy(update={"lens_pictures": 5})
    with (
        serving(settings.model_copy(update={"limits": few})) as (url, _),
        httpx2.Client(base_url=url, timeout=60) as http,
    ):
        assert len(seen(http)["data"]) == 5
        answer = asked(http, n=2)
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "too_many_pictures"


def events_of(http, **changes):
    with http.stream("POST", "/v1/images/lens", json=body(stream=True, **changes)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_a_stream_tells_each_picture_as_it_is_finished_then_the_sheet(http):
    events = events_of(http, n=2)
    kinds = [e["type"] for e in events if e["type"] != "tiller.step"]
    assert kinds == ["tiller.applied", *["lens.picture"] * 10, "lens.sheet"]
    assert events[0]["tiller"]["lens"]["layers"] == LAYERS
    whole = seen(http, n=2)
    told = {(e["layer"], e["seed"]): e for e in events if e["type"] == "lens.picture"}
    for shown in whole["data"]:
        event = told[shown["layer"], shown["seed"]]
        assert {key: event[key] for key in shown} == shown
    assert events[-1]["b64_json"] == whole["sheet"]["b64_json"]
    steps = [e for e in events if e["type"] == "tiller.step" and (e["layer"], e["seed"]) == (4, 4)]
    assert [(e["done"], e["total"]) for e in steps] == [(1, 3), (2, 3), (3, 3)]


def test_previews_say_of_which_layer_they_are(http):
    events = events_of(http, layers=[1, 4], partial_images=1, steps=4)
    partial = [e for e in events if e["type"] == "image_generation.partial_image"]
    assert sorted(e["layer"] for e in partial) == [1, 4]


def active(http):
    text = http.get("/metrics").text
    return {
        what: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        for what in ("active", "waiting")
        if line.startswith(f'tiller_engine{{model="{MODEL}",what="{what}"}}')
    }


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_whole_sweep(url, http, stream):
    raw = json.dumps(body(stream=stream, steps=200, n=5)).encode()
    head = f"POST /v1/images/lens HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(raw)}"
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as leaving:
        leaving.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + raw)
        wait_until(lambda: active(http)["active"] == 4)
    wait_until(lambda: active(http) == {"active": 0, "waiting": 0})


def test_a_sweep_leaves_room_for_others(url, http):
    """50 rows on an engine where 4 are drawn and 8 may wait: others are drawn in between."""
    with http.stream("POST", "/v1/images/lens", json=body(stream=True, n=10, steps=6)) as sweep:
        lines = sweep.iter_lines()
        drawn = 0
        with httpx2.Client(base_url=url, timeout=60) as other:
            while drawn < 4:
                drawn += "lens.picture" in next(lines)
            before = time.monotonic()
            assert ordinary(other)
            waited = time.monotonic() - before
        rest = sum(line.startswith("event: lens.picture") for line in lines)
    assert rest > 20, f"it waited {waited} s, for the whole sweep"


def test_what_was_drawn_is_counted(http):
    def counted():
        text = http.get("/metrics").text
        found = [line for line in text.splitlines() if line.startswith("tiller_images_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    before = counted()
    seen(http, layers=[0, 1], n=2)
    events_of(http, layers=[0, 1], n=2)
    assert counted() - before == 8


@pytest.fixture(scope="module")
def http_xl(settings_for, serving, tiny_sdxl_folder):
    settings = settings_for()
    model = settings.models[0].model_copy(update={"path": str(tiny_sdxl_folder)})
    with (
        serving(settings.model_copy(update={"models": (model,)})) as (url, _),
        httpx2.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def test_sdxl_has_two_encoders_whose_last_block_is_not_read(http_xl):
    answers = [seen(http_xl, **told) for told in ({}, {"encoder": "text"}, {"encoder": "text_2"})]
    assert [d["layer"] for d in answers[0]["data"]] == [0, 1, 2, 3]
    assert pngs(answers[0]) == pngs(answers[1])
    assert answers[0]["data"][0]["norm"] == "none"
    assert answers[0]["tiller"]["lens"]["beside_paths"]
    assert pngs(answers[2])[0] != pngs(answers[0])[0]
    assert pngs(answers[2])[3] == pngs(answers[0])[3] == ordinary(http_xl)[0]


def test_sdxls_other_paths_are_blank_or_full_and_always_full_at_the_ordinary_layer(http_xl):
    blank, full = (seen(http_xl, layers=[1, 3], beside=how) for how in ("blank", "full"))
    assert [d["beside"] for d in blank["data"]] == ["blank", "full"]
    assert [d["beside"] for d in full["data"]] == ["full", "full"]
    assert pngs(blank)[0] != pngs(full)[0]
    assert pngs(blank)[1] == pngs(full)[1]


def test_a_models_card_says_which_layers_there_are(http, http_xl):
    assert http.get(f"/v1/models/{MODEL}").json()["lens"] == {
        "text": {
            "applies": True,
            "layers": {"first": 0, "ordinary": 4},
            "norm": "final norm",
            "beside": [],
        }
    }
    both = http_xl.get(f"/v1/models/{MODEL}").json()["lens"]
    assert {name: lens["layers"]["ordinary"] for name, lens in both.items()} == {
        "text": 3,
        "text_2": 3,
    }


def test_an_unknown_encoder_is_refused_with_the_ones_that_there_are(http_xl):
    answer = asked(http_xl, encoder="text_3")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "unknown_tower"
    assert "text, text_2" in answer.json()["error"]["message"]
