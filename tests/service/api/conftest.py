"""A tiny model that sees, hosted for all tests of this folder that show it something."""

import base64
import io

import httpx2
import numpy as np
import pytest
from PIL import Image

from models.family import FAMILIES
from service.settings import Limits, Model, Server, Settings

SEER = "tiny-vl"


def drawn(width=48, height=48, seed=1):
    """A picture of noise, which is another one for every seed."""
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def written(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(data, kind="png"):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="session")
def tiny_vl_folder(tmp_path_factory):
    """A random Qwen2-VL of four layers with its processor."""
    return FAMILIES["qwen2_vl"].tiny(tmp_path_factory.mktemp("tiny") / "qwen2_vl")


@pytest.fixture(scope="session")
def seer_settings_for(tmp_path_factory, tiny_vl_folder, tiny_lm_folder):
    """A function: settings of a service that hosts the tiny Qwen2-VL, and a Llama beside it."""

    def make(**changes):
        home = tmp_path_factory.mktemp("home")
        captions = home / "captions.txt"
        captions.write_text("a red house by the sea\na blue cup at night\n")
        shared = {"corpus": {"path": str(captions)}, "slots": 4, "max_waiting": 8}
        models = (
            Model(name=SEER, path=str(tiny_vl_folder), capacity=512, **shared),
            Model(name="tiny-lm", path=str(tiny_lm_folder), **shared),
        )
        told = {"server": Server(port=0, drain_seconds=20.0), **changes}
        return Settings(home=home, models=models, **told)

    return make


@pytest.fixture(scope="session")
def seer(seer_settings_for, serving):
    """(url, workbench) of a service on the tiny Qwen2-VL."""
    few = Limits(input_pictures=3, input_picture_bytes=200_000, input_pixels=400 * 400)
    with serving(seer_settings_for(limits=few)) as running_service:
        yield running_service


@pytest.fixture(scope="session")
def seer_url(seer):
    return seer[0]


@pytest.fixture
def seeing(seer_url):
    """An HTTP client of the seer."""
    with httpx2.Client(base_url=seer_url, timeout=60) as client:
        yield client
