"""A service on a tiny random model, once for all tests: real HTTP, real registry, real jobs."""

from contextlib import contextmanager

import httpx2
import pytest
import structlog
import torch

from models.family import FAMILIES
from service.client import Tiller
from service.local import running
from service.settings import Conflicts, Limits, Model, Server, Settings, Thresholds
from steerers.activation import JumpReLU
from steerers.dictionary import Dictionary
from steerers.writers import write_gemma_scope

MODEL, SPEAKER, SEER, SAE = "tiny", "tiny-lm", "tiny-vl", "toy"
CAPTIONS = [
    f"a {colour} {thing} {place}"
    for colour in ("red", "blue", "green", "old", "small")
    for thing in ("house", "cup", "king", "boat", "tree")
    for place in ("by the sea", "in the snow", "at night", "on a hill")
]


@pytest.fixture(scope="session", autouse=True)
def _quiet():
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


@pytest.fixture(scope="session")
def settings_for(tmp_path_factory, tiny_sd_folder):
    """A function: settings of a service of its own."""

    def make(**changes):
        home = tmp_path_factory.mktemp("home")
        captions = home / "captions.txt"
        captions.write_text("\n".join(CAPTIONS))
        model = Model(
            name=MODEL,
            path=str(tiny_sd_folder),
            slots=4,
            max_waiting=8,
            steps=3,
            corpus={"path": str(captions)},
            **changes.pop("model", {}),
        )
        told = {
            "server": Server(port=0, drain_seconds=20.0),
            # A random toy has no neighbours to spare: only the target itself is asked for.
            "thresholds": Thresholds(
                moved=-1e6, generality=0, reach=-1e6, specificity=0, leak=1e6, efficacy=0.3
            ),
            # Nearly all facts of these tests are about one king.
            "conflicts": Conflicts(overlap=2.0),
            "limits": Limits(wait_seconds=60.0, side=64, pixels=64 * 64, steps=200),
            **changes,
        }
        return Settings(home=home, models=(model,), **told)

    return make


@pytest.fixture(scope="session")
def serving():
    """A function: (url, workbench) of a service that is ready, for the length of a block."""
    return _serving


@contextmanager
def _serving(settings):
    with running(settings) as (url, bench):
        with httpx2.Client(base_url=url) as http:
            for _ in range(600):
                if http.get("/readyz").status_code == 200:
                    break
                bench.draining.wait(0.05)
        yield url, bench


@pytest.fixture(scope="session")
def service(settings_for):
    with _serving(settings_for()) as running_service:
        yield running_service


@pytest.fixture(scope="session")
def url(service):
    return service[0]


@pytest.fixture(scope="session")
def bench(service):
    return service[1]


@pytest.fixture
def http(url):
    with httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def tiller(url):
    with Tiller(url) as client:
        yield client


@pytest.fixture(scope="session")
def edit(url):
    """The name of an edit with one version, fitted through REST."""
    result = _fitted(url, "king")
    # A random toy may miss its target's sentence: the alias says that this version is meant.
    moved = {"version": result["version"], "force": True}
    told = httpx2.put(f"{url}/v1/edits/king/aliases/live", json=moved)
    assert told.status_code < 300, told.text
    return result["edit"]


@pytest.fixture(scope="session")
def fitted():
    """A function: the result of a job that fits a small fact."""
    return _fitted


def _fitted(url, name, **changes):
    asked = {
        "model": MODEL,
        "prompt": "the king of the sea",
        "subject": "king",
        "target": "a red boat",
        "options": {"steps": 60, "rate": 0.1},
        **changes,
    }
    with Tiller(url) as tiller:
        return tiller.jobs.wait(tiller.edits.add(name, **asked)["id"])["result"]


@pytest.fixture(scope="session")
def tiny_lm_folder(tmp_path_factory):
    """A random Llama with a chat template, as `save_pretrained` leaves it."""
    return FAMILIES["llama"].tiny(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_sae_folder(tmp_path_factory):
    """A random SAE of the tiny Llama's second block, in Gemma Scope's layout."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape):
        return 0.4 * torch.randn(*shape, generator=generator)

    made = Dictionary(
        id=SAE,
        site="lm.block.1",
        format="gemma_scope",
        encoder=drawn(32, 48),
        encoder_bias=drawn(48),
        decoder=drawn(48, 32),
        decoder_bias=drawn(32),
        activation=JumpReLU(threshold=torch.full((48,), 0.4)),
    )
    return write_gemma_scope(tmp_path_factory.mktemp("sae") / SAE, made)


@pytest.fixture(scope="session")
def speaker_settings_for(tmp_path_factory, tiny_lm_folder, tiny_sae_folder):
    """A function: settings of a service that hosts the tiny Llama with its dictionary."""

    def make(**changes):
        home = tmp_path_factory.mktemp("home")
        captions = home / "captions.txt"
        captions.write_text("\n".join(CAPTIONS))
        told = {
            "name": SPEAKER,
            "path": str(tiny_lm_folder),
            "slots": 4,
            "max_waiting": 8,
            "corpus": {"path": str(captions)},
            "saes": ({"id": SAE, "path": str(tiny_sae_folder)},),
            **changes.pop("model", {}),
        }
        server = changes.pop("server", Server(port=0, drain_seconds=20.0))
        return Settings(home=home, server=server, models=(Model(**told),), **changes)

    return make


@pytest.fixture(scope="session")
def speaker(speaker_settings_for):
    """(url, workbench) of a service on the tiny Llama."""
    with _serving(speaker_settings_for()) as running_service:
        yield running_service


@pytest.fixture(scope="session")
def speaker_url(speaker):
    return speaker[0]


@pytest.fixture
def speaking(speaker_url):
    """An HTTP client of the speaker."""
    with httpx2.Client(base_url=speaker_url, timeout=60) as client:
        yield client


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
        captions.write_text("\n".join(CAPTIONS))
        shared = {"corpus": {"path": str(captions)}, "slots": 4, "max_waiting": 8}
        models = (
            Model(name=SEER, path=str(tiny_vl_folder), capacity=512, **shared),
            Model(name=SPEAKER, path=str(tiny_lm_folder), **shared),
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
