"""The embedded miniature, served as `tiller serve --local` does, once for these tests."""

import time

import httpx2
import pytest

from service.client import Tiller
from service.local import running
from service.settings import Settings


@pytest.fixture(scope="session")
def world_url(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with running(Settings.read({"TILLER_HOME": str(home), "TILLER_PORT": "0"})) as (url, _):
        until = time.monotonic() + 120
        while httpx2.get(f"{url}/readyz").status_code != 200:
            assert time.monotonic() < until, "the miniature did not load"
            time.sleep(0.1)
        yield url


@pytest.fixture(scope="session")
def tiller(world_url):
    with Tiller(world_url) as client:
        yield client
