"""Addresses of pictures: from named hosts only, every hop looked at, nothing unbounded."""

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from service.errors import PictureOutOfReach, TooMuch
from service.fetching import fetched, is_public
from service.settings import Remote

MOST = 4096


class Pictures(BaseHTTPRequestHandler):
    """Answers as its path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        kind, _, rest = self.path.removeprefix("/").partition("/")
        getattr(self, kind, self.missing)(rest)

    def missing(self, _):
        self.send_error(404)

    def picture(self, _):
        self.answer(b"PNG" * 100)

    def long(self, _):
        self.answer(b"x" * (MOST + 1))

    def unannounced(self, _):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"x" * (20 * MOST))
        self.close_connection = True

    def compressed(self, _):
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"abc")

    def moved(self, rest):
        self.send_response(302)
        self.send_header("Location", rest.replace(":/", "://", 1) if ":/" in rest else f"/{rest}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def round(self, _):
        self.moved("round/again")

    def slow(self, _):
        self.server.over.wait(5)
        self.answer(b"late")

    def answer(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pictures():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.asked, server.over = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def inside(pictures, **changes):
    port = pictures.server_address[1]
    told = {"hosts": (f"127.0.0.1:{port}", f"localhost:{port}"), "seconds": 5.0}
    return Remote(**{**told, "plain_http": True, "private": True, **changes})


def fetch(pictures, path, host="127.0.0.1", **changes):
    address = f"http://{host}:{pictures.server_address[1]}/{path}"
    return asyncio.run(fetched(address, "url", inside(pictures, **changes), MOST))


def refused(pictures, path, kind=PictureOutOfReach, **changes):
    with pytest.raises(kind) as told:
        fetch(pictures, path, **changes)
    assert told.value.param == "url"
    return told.value.problem


def test_a_picture_comes_from_a_named_host_and_nothing_is_sent_along(pictures):
    assert fetch(pictures, "picture", host="localhost") == b"PNG" * 100
    path, headers = pictures.asked[-1]
    assert path == "/picture"
    assert headers["Host"] == f"localhost:{pictures.server_address[1]}"
    assert not {"Cookie", "Authorization", "Referer"} & headers.keys()


def test_a_move_is_followed_to_a_named_host(pictures):
    port = pictures.server_address[1]
    assert fetch(pictures, "moved/picture") == b"PNG" * 100
    assert fetch(pictures, f"moved/http:/localhost:{port}/picture") == b"PNG" * 100


@pytest.mark.parametrize(
    ("path", "changes", "why"),
    [
        ("picture", {"hosts": ()}, "fetches nothing"),
        ("picture", {"hosts": ("127.0.0.1",)}, "none of the hosts"),
        ("picture", {"plain_http": False}, "https"),
        ("picture", {"private": False}, "private network"),
        ("moved/http:/169.254.169.254/latest", {}, "none of the hosts"),
        ("moved/file:/etc/passwd", {}, "https"),
        ("moved/http:/u:p@localhost/x", {}, "password"),
        ("round", {}, "moved more than"),
        ("moved/picture", {"redirects": 0}, "moved more than 0"),
        ("compressed", {}, "compresses"),
        ("nowhere", {}, "404"),
        ("slow", {"seconds": 0.2}, "longer than 0.2"),
    ],
)
def test_what_is_not_fetched_says_why(pictures, path, changes, why):
    assert why in refused(pictures, path, **changes)


@pytest.mark.parametrize("path", ["long", "unannounced"])
def test_more_bytes_than_allowed_are_not_read(pictures, path):
    assert "bytes" in refused(pictures, path, TooMuch)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("ftp://localhost/x", "https"),
        ("http://user@localhost/x", "user"),
        ("http://elsewhere.example/x", "none of the hosts"),
        ("http:///x", "no host"),
        ("not an address", "https"),
        ("http://[::1/x", "on the way"),
    ],
)
def test_addresses_that_are_none_of_ours_are_refused(pictures, address, why):
    with pytest.raises(PictureOutOfReach) as told:
        asyncio.run(fetched(address, "url", inside(pictures), MOST))
    assert why in told.value.problem


def test_a_star_names_what_is_below_a_host_and_not_the_host():
    named = Remote(hosts=("*.example.invalid",), seconds=5.0)
    for host, why in (("a.b.example.invalid", "not known"), ("example.invalid", "none of")):
        with pytest.raises(PictureOutOfReach) as told:
            asyncio.run(fetched(f"https://{host}/x", "url", named, MOST))
        assert why in told.value.problem


@pytest.mark.parametrize(
    "number",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104
        "224.0.0.1",
        "::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::a00:1",
        "ff02::1",
    ],
)
def test_numbers_that_not_everybody_reaches_are_private(number):
    assert not is_public(number)


@pytest.mark.parametrize("number", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_other_numbers_are_public(number):
    assert is_public(number)
