"""A service of one's own ends with the process that started it, however that ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

STARTS = """
import sys, time
from pathlib import Path
from service.running import serving
with serving(Path(sys.argv[1]), local=True, config=Path(sys.argv[2])) as url:
    print(url, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def started(tmp_path, tiny_sd_folder):
    """A function: (parent, its children, the service's address)."""
    config = tmp_path / "models.toml"
    config.write_text(f'[[models]]\nname = "tiny"\npath = "{tiny_sd_folder}"\nslots = 1\n')
    begun = []

    def start():
        command = [sys.executable, "-c", STARTS, str(tmp_path / "home"), str(config)]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
        begun.append(parent)
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert url, "the service did not start"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        return parent, children, url

    yield start
    for parent in begun:
        with parent:
            parent.kill()


def runs(pid):
    """Whether the process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_parent_that_is_killed_takes_its_service_with_it(started, number):
    parent, children, url = started()
    assert len(children) == 1 and runs(children[0])
    assert httpx2.get(f"{url}/livez").status_code == 200
    parent.send_signal(number)
    code = parent.wait(60)
    assert code == (128 + number if number == signal.SIGTERM else -number)
    until = time.monotonic() + 60
    while runs(children[0]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not runs(children[0])
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/livez")
