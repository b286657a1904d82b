"""`tiller demo`: it shows what it promises, and says so when it does not."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from evaluation.cases import read_cases
from evaluation.judge import Verdict
from service.demo import PROMPT, _shown
from service.evaluating import miniature_judge, shipped_cases

CASE = next(c for c in read_cases(shipped_cases()) if c.prompt == PROMPT)


def blind(pictures, answers):
    """A judge that sees the old president everywhere."""
    assert len(pictures) == len(answers)
    return [Verdict(best=CASE.probes[0].wrong, probabilities={}) for _ in pictures]


def test_the_demo_holds_and_leaves_a_contact_sheet(tiller, tmp_path, capsys):
    assert _shown(tiller, CASE, miniature_judge(), tmp_path / "a" / "sheet.png", 1)
    sheet = np.asarray(Image.open(tmp_path / "a" / "sheet.png"))
    assert sheet.shape[1] > 1000
    told = capsys.readouterr().out
    assert "✓ the president changed" in told
    assert "✓ the unedited caller" in told
    assert "sha256" in told or "arda@" in told


def test_the_demo_says_so_when_the_president_did_not_change(tiller, tmp_path, capsys):
    assert not _shown(tiller, CASE, blind, tmp_path / "sheet.png", 1)
    assert "✗ the president changed" in capsys.readouterr().out


def run(*options, folder):
    command = [sys.executable, "-c", "from service.cli import main; main()", "demo", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)  # noqa: S603


def stopped(folder):
    """The service that the demo started says that it drained."""
    return "draining" in (folder / ".demo" / "serve.log").read_text()


def test_the_command_in_one_process_ends_well_and_stops_its_service(tmp_path):
    done = run("--local", "--pictures", "1", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "before-after.png").exists()
    assert stopped(tmp_path)


@pytest.mark.cluster
def test_the_command_on_ray_serve_ends_well(tmp_path):
    done = run("--pictures", "1", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "before-after.png").exists()
