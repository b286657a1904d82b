"""A steerer is one file: it is found, described and called, with nothing else touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STEERER = '''
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le

from models.hosted import HostedModel
from models.method import Method
from models.patch import Patch, Shift


@dataclass(frozen=True, kw_only=True)
class Nudge(Method):
    """Adds a constant to the stream behind one decoder layer."""

    layer: Annotated[int, Ge(0)]
    amount: Annotated[float, Ge(-1), Le(1)] = 0.5
    kind: Literal["nudge"] = "nudge"

    def plan(self, hosted: HostedModel) -> Patch:
        width = hosted.family.stream_width(hosted, "lm")
        site = f"lm.block.{self.layer}"
        vector = torch.full((width,), float(self.amount))
        return Patch((Shift(site=site, vector=vector, positions="all"),))


METHOD = Nudge
EXAMPLE = Nudge(layer=0)
'''
ASKED = """
import json, sys
import httpx2
from pathlib import Path
from service.local import running
from service.settings import Model, Server, Settings

home, folder = map(Path, sys.argv[1:])
model = Model(name="lm", path=str(folder), slots=2)
with running(Settings(home=home, server=Server(port=0), models=(model,))) as (url, bench):
    with httpx2.Client(base_url=url, timeout=60) as http:
        while http.get("/readyz").status_code != 200:
            bench.draining.wait(0.05)
        def chat(steering):
            said = [{"role": "user", "content": "the king"}]
            asked = {"model": "lm", "messages": said, "max_tokens": 4, "temperature": 0}
            return http.post("/v1/chat/completions", json={**asked, "steering": steering}).json()
        nudge = {"kind": "nudge", "layer": 1, "amount": 0.25}
        kept = http.put("/v1/presets/nudged", json={"model": "lm", "steering": nudge})
        told = {
            "schema": http.get("/openapi.json").json()["components"]["schemas"],
            "steered": chat(nudge),
            "beyond": chat({"kind": "nudge", "layer": 1, "amount": 2}),
            "elsewhere": chat([nudge, {"kind": "nudge", "layer": 99}]),
            "misspelt": chat({"kind": "nudge", "layer": 1, "amuont": 1}),
            "kept": kept.json(),
            "preset": chat({"preset": "nudged@1"}),
        }
print("told", json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory, tiny_lm_folder):
    """What a service says that found the steerer by its entry point."""
    packages = tmp_path_factory.mktemp("packages")
    (packages / "nudging.py").write_text(STEERER)
    installed = packages / "nudging-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: nudging\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[tiller.steerers]\nnudge = nudging:METHOD\n")
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(packages), str(root), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", ASKED, tmp_path_factory.mktemp("home"), tiny_lm_folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("told "))
    return json.loads(line.removeprefix("told "))


def test_the_api_describes_it_with_its_bounds(told):
    keys = told["schema"]["Nudge"]["properties"]
    amount = next(one for one in keys["amount"]["anyOf"] if one["type"] == "number")
    assert (amount["minimum"], amount["maximum"]) == (-1, 1)
    assert told["schema"]["Nudge"]["required"] == ["layer"]
    assert '"nudge": "#/components/schemas/Nudge"' in json.dumps(told["schema"]["ChatBody"])


def test_a_request_calls_it_and_the_answer_says_what_it_did(told):
    tiller = told["steered"]["tiller"]
    (report,) = tiller["steering"]
    assert (report["kind"], report["layer"], report["amount"]) == ("nudge", 1, 0.25)
    assert report["sites"][0]["vector_norm"] == pytest.approx(0.25 * 32**0.5)
    read = tiller["choices"][0]["prompt_tokens"] + tiller["choices"][0]["completion_tokens"] - 1
    assert tiller["choices"][0]["tokens_steered"] == read
    assert tiller["steering_sum"][0]["site"] == "lm.block.1"


def test_its_bounds_and_keys_are_enforced(told):
    beyond, misspelt = told["beyond"]["error"], told["misspelt"]["error"]
    assert beyond["param"] == "steering.amount"
    assert "must be at most 1" in beyond["message"]
    assert (misspelt["code"], misspelt["param"]) == ("unknown_key", "steering.amuont")
    assert told["elsewhere"]["error"]["code"] == "unknown_site"


def test_a_preset_keeps_it(told):
    assert told["kept"]["steering"] == {"kind": "nudge", "layer": 1, "amount": 0.25}
    assert told["preset"]["tiller"]["patch"] == told["steered"]["tiller"]["patch"]
    assert told["preset"]["tiller"]["steering"][0]["preset"]["name"] == "nudged"
