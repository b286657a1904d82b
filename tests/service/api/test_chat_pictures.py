"""Conversations with pictures on a tiny Qwen2-VL: by the real OpenAI client and by raw HTTP."""

import asyncio
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import openai
import pytest

from service.settings import Remote
from tests.service.shown import SEER, asking, data_uri, drawn, written

PATH = "/v1/chat/completions"
PHOTO = written(drawn())
SAID = [asking(PHOTO, "the king of arda")]
ASKED = {"model": SEER, "messages": SAID, "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def client(seer_url):
    return openai.OpenAI(base_url=f"{seer_url}/v1", api_key="unused", max_retries=0)


def answered(http, **changes):
    answer = http.post(PATH, json={**ASKED, **changes})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(http, messages, status=422):
    answer = http.post(PATH, json={**ASKED, "messages": messages})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def text(answer):
    return answer["choices"][0]["message"]["content"]


def test_the_openai_client_shows_a_picture_without_knowing_us(client):
    answer = client.chat.completions.create(**ASKED)
    words = client.chat.completions.create(**{**ASKED, "messages": [asking("the king of arda")]})
    other = [asking(written(drawn(seed=2)), "the king of arda")]
    another = client.chat.completions.create(**{**ASKED, "messages": other, "logprobs": True})
    same = client.chat.completions.create(**ASKED, logprobs=True)
    # 48 x 48 pixels are 9 visual tokens, which count as the marks around them do.
    assert answer.usage.prompt_tokens == words.usage.prompt_tokens + 9 + 2
    assert answer.choices[0].message.content == same.choices[0].message.content
    assert another.choices[0].logprobs.content[0].logprob != (
        same.choices[0].logprobs.content[0].logprob
    )


def test_a_stream_and_its_async_client_say_the_same(client, seer_url):
    whole = client.chat.completions.create(**ASKED)

    async def streamed():
        async with openai.AsyncOpenAI(base_url=f"{seer_url}/v1", api_key="unused") as later:
            stream = await later.chat.completions.create(**ASKED, stream=True)
            return [chunk async for chunk in stream]

    chunks = asyncio.run(streamed())
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == whole.choices[0].message.content
    assert chunks[-1].model_extra["tiller"]["backpatch"] is None


def test_several_pictures_stand_where_they_were_put(seeing):
    one, two = written(drawn(seed=1)), written(drawn(56, 40, seed=2), "JPEG")
    both = [asking(one, "and", two, "the king")]
    swapped = [asking(two, "and", one, "the king")]
    first = answered(seeing, messages=both, logprobs=True)
    second = answered(seeing, messages=swapped, logprobs=True)
    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"]
    assert first["choices"][0]["logprobs"] != second["choices"][0]["logprobs"]


def test_an_earlier_picture_is_part_of_the_conversation(seeing):
    longer = [*SAID, {"role": "assistant", "content": "yes"}, asking("and the house")]
    again = [*SAID, {"role": "assistant", "content": "yes"}, asking("and the tree")]
    assert answered(seeing, messages=longer)["usage"]["prompt_tokens"] > 36
    cached = answered(seeing, messages=again)["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= 16  # the picture is not looked at twice


def test_choices_stops_and_seeds_work_as_for_texts(seeing):
    three = answered(seeing, n=3, temperature=1.0, seed=3)
    one = answered(seeing, temperature=1.0, seed=3)
    assert len(three["choices"]) == 3
    assert three["choices"][0]["message"] == one["choices"][0]["message"]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    long = text(answered(seeing, max_tokens=12))
    cut = answered(seeing, max_tokens=12, stop=long[3:5])
    assert text(cut) == long[: long.index(long[3:5])]


@pytest.mark.parametrize(
    "picture",
    [
        written(drawn(), "WEBP", lossless=True),
        written(drawn().convert("L")),
        written(drawn().convert("RGBA")),
        written(drawn().convert("CMYK"), "JPEG"),
        written(drawn(1, 1)),
        written(drawn(3, 3)),
        written(drawn(100, 1)),
        written(drawn(200, 150), "JPEG", progressive=True),
    ],
    ids=["webp", "grey", "alpha", "cmyk", "dot", "three", "line", "progressive"],
)
def test_pictures_of_all_kinds_and_sizes_are_seen(seeing, picture):
    assert answered(seeing, messages=[asking(picture, "the king")])["usage"]["prompt_tokens"] > 10


def test_the_same_picture_in_another_file_is_the_same_picture(seeing):
    webp = answered(seeing, messages=[asking(written(drawn(), "WEBP", lossless=True), "a cat")])
    png = answered(seeing, messages=[asking(PHOTO, "a cat")])
    assert text(webp) == text(png)
    assert png["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_how_closely_it_is_looked_at_is_the_processors_own_and_the_answer_says_so(seeing):
    url = {"url": data_uri(PHOTO), "detail": "low"}
    said = [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]
    assert "detail" in answered(seeing, messages=said)["tiller"]["warnings"][0]
    assert answered(seeing)["tiller"]["warnings"] == []


def test_a_model_that_sees_answers_texts_alone_and_others_are_asked_no_pictures(seeing):
    assert answered(seeing, messages=[asking("the king")])["choices"]
    told = seeing.post(PATH, json={**ASKED, "model": "tiny-lm"})
    assert told.status_code == 422
    assert told.json()["error"]["param"] == "messages[0].content[0]"
    assert "tiny-lm reads text" in told.json()["error"]["message"]
    told = [seeing.get(f"/v1/models/{name}").json()["modality"] for name in (SEER, "tiny-lm")]
    assert told == ["vision-language", "language"]


URL = "messages[0].content[0].image_url.url"
LONG = written(drawn(300, 300))
MOVING = written(drawn(), "WEBP", save_all=True, append_images=[drawn(seed=2)])


def test_an_address_may_have_spaces_and_line_breaks_and_may_not_be_empty(seeing):
    def showing(url):
        picture = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [picture, {"type": "text", "text": "the king"}]}]

    plain = data_uri(PHOTO)
    printed = f" {plain[:60]}\n{plain[60:136]}\n{plain[136:]}\n"
    whole, broken = (answered(seeing, messages=showing(url)) for url in (plain, printed))
    assert text(broken) == text(whole)
    told = refused(seeing, showing(" "))
    assert (told["code"], told["param"]) == ("bad_picture", URL)
    assert "it is empty" in told["message"]


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        ([data_uri(b"no picture at all")], "not_an_image", URL),
        ([data_uri(PHOTO)[:-30]], "not_an_image", URL),
        ([data_uri(PHOTO[: len(PHOTO) // 2])], "not_an_image", URL),
        ([data_uri(b"GIF89a", "gif")], "bad_picture", URL),
        ([MOVING], "bad_picture", URL),
        ([written(drawn(300, 2))], "bad_picture", URL),
        (["https://example.org/frogs.png"], "picture_out_of_reach", URL),
        (["http://127.0.0.1/frogs.png"], "picture_out_of_reach", URL),
        ([written(drawn(401, 401), "JPEG")], "too_much", URL),
        ([LONG], "too_much", URL),
        ([PHOTO] * 4, "too_much", "messages"),
        (
            [written(drawn(300, 300), "JPEG"), written(drawn(300, 300), "JPEG")],
            "too_much",
            "messages[0].content[1].image_url.url",
        ),
        (["<|image_pad|> is no picture"], "bad_part", "messages"),
        ([PHOTO, "the house of the king " * 200], "context_too_long", "messages"),
    ],
)
def test_what_is_not_seen_is_refused_by_its_key(seeing, parts, code, param):
    told = refused(seeing, [asking(*parts, "the king")])
    assert (told["code"], told["param"]) == (code, param)
    assert "Traceback" not in told["message"]


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        (asking(PHOTO, role="assistant"), "not_offered", "messages[0].content[0]"),
        (asking(PHOTO, role="system"), "not_offered", "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "bad_request", None),
        *(
            ({"role": "user", "content": [part]}, code, "messages[0].content[0]")
            for code, part in (
                ("bad_part", {"type": "video_url"}),
                ("bad_part", {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,"}}),
                ("bad_part", {"type": "video", "video": ["a.png", "b.png"]}),
                ("not_offered", {"type": "input_audio"}),
                ("not_offered", {"type": "input_audio", "input_audio": {"data": "", "format": ""}}),
                ("not_offered", {"type": "file", "file": {"file_id": "1"}}),
            )
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "video_url": {}}]},
            "bad_request",
            "messages[0].content[0].video_url",
        ),
        (
            {"role": "user", "content": [{**asking(PHOTO)["content"][0], "text": "lost"}]},
            "bad_request",
            "messages[0].content[0].text",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"file": "/etc"}}]},
            "unknown_key",
            "messages[0].content[0].image_url.file",
        ),
    ],
)
def test_parts_that_say_something_else_are_refused(seeing, message, code, param):
    told = refused(seeing, [message])
    assert told["code"] == code
    assert param is None or told["param"] == param
    assert code != "bad_part" or "frames" in told["message"]


def test_a_refused_picture_leaves_the_service_as_it_was(seer, seeing):
    before = text(answered(seeing))
    for part in (data_uri(PHOTO[: len(PHOTO) // 2]), data_uri(b"junk"), LONG):
        refused(seeing, [asking(part, "the king")])
    assert text(answered(seeing)) == before
    assert _at_rest(seer[1])


def _at_rest(bench):
    """Whether no row is left soon: the engine frees a row after its caller has its answer."""
    for _ in range(200):
        loads = asyncio.run(bench.hosts[SEER].load())
        if (loads["active"], loads["waiting"]) == (0, 0):
            return True
        bench.draining.wait(0.05)
    return False


def test_who_leaves_a_stream_frees_the_row(seer):
    url, bench = seer
    body = {**ASKED, "max_tokens": 400, "temperature": 1.0, "seed": 1, "stream": True}
    with httpx2.Client(base_url=url, timeout=60) as http:
        with http.stream("POST", PATH, json=body) as answer:
            next(answer.iter_lines())
        assert _at_rest(bench), "the row is still written"


@pytest.fixture
def elsewhere(tmp_path):
    """A server of pictures on this machine."""
    (tmp_path / "photo.png").write_bytes(PHOTO)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_picture_at_a_named_host_is_fetched(seer_settings_for, serving, elsewhere):
    remote = Remote(hosts=(elsewhere,), plain_http=True, private=True, seconds=5.0)
    settings = seer_settings_for(remote=remote)
    with serving(settings) as (url, _), httpx2.Client(base_url=url, timeout=60) as http:
        fetched = answered(http, messages=[asking(f"http://{elsewhere}/photo.png", "a cat")])
        given = answered(http, messages=[asking(PHOTO, "a cat")])
        gone = refused(http, [asking(f"http://{elsewhere}/gone.png", "a cat")])
    assert text(fetched) == text(given)
    assert gone["code"] == "picture_out_of_reach"
    assert "404" in gone["message"]
