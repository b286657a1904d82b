"""The command line, as a user types it, against a running service."""

import json
import os
import re
import subprocess
import sys
import zipfile

import pytest

from service import cli, cli_shared
from service.client import Tiller

MODEL, PROMPT = "tiny", "the king of the sea"


def ended():
    """The exit code of the command that `sys.argv` tells."""
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.fixture
def run(url, bench, monkeypatch, capsys):
    """A function: (exit code, standard output, standard error) of a command."""
    monkeypatch.setenv("TILLER_URL", url)
    monkeypatch.setenv("TILLER_HOME", str(bench.settings.home))
    for console in (cli_shared.out, cli_shared.err):
        monkeypatch.setattr(console, "width", 200)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["tiller", *map(str, words)])
        capsys.readouterr()
        code = ended()
        told = capsys.readouterr()
        return code, told.out, told.err

    return command


@pytest.fixture
def done(run):
    """A function: the standard output of a command that must succeed."""

    def command(*words):
        code, out, err = run(*words)
        assert code == 0, err
        return out

    return command


def added(done, name, target="a red boat", *more):
    fact = ("--prompt", PROMPT, "--subject", "king", "--target", target, "-m", MODEL)
    return done("edit", "add", name, *fact, *more)


def test_settings_and_phrasings_reach_the_fit(done, tiller):
    more = ("--phrasing", "the lord of the sea", "--set", "steps=7", "--source", "a king")
    added(done, "with-settings", "a red boat", *more)
    told = tiller.edits.show("with-settings", 1)["header"]
    assert told["settings"]["steps"] == 7
    assert told["fact"]["source"] == "a king"
    assert told["fact"]["phrasings"][0]["prompt"] == "the lord of the sea"


def test_an_edit_is_added_shown_and_listed(done):
    told = added(done, "typed")
    assert re.search(r"typed@1 +(ready|failed_checks)", told)
    assert re.search(r"efficacy +\d\.\d{3}", told)
    assert "typed" in done("edit", "list")
    history = done("edit", "show", "typed")
    digest = re.search(r"digest ([0-9a-f]{64})", told)[1]
    assert digest[:16] in history
    assert digest in done("edit", "show", "typed", 1)


def test_an_edit_without_waiting_is_a_job_to_watch(done):
    job = added(done, "patient", "a blue cup", "--no-wait").strip()
    assert json.loads(done("jobs", "watch", job))["edit"] == "patient"
    assert json.loads(done("jobs", "show", job))["state"] == "succeeded"
    assert job in done("jobs", "list")


def test_a_fact_may_say_what_it_replaces(done, edit, tiller):
    added(done, "heir", "a green house", "--replaces", edit)
    assert tiller.edits.show("heir", 1)["header"]["replaces"] == [edit]


def test_an_alias_is_promoted_guarded_and_rolled_back(run, done):
    for target in ("a red boat", "a blue cup"):
        added(done, "moving", target)
    assert "moving@live -> moving@1" in done("edit", "promote", "moving", 1, "--force")
    moved = done("edit", "promote", "moving", 2, "--force")
    generation = int(re.search(r"generation (\d+)", moved)[1])
    code, _, err = run("edit", "promote", "moving", 1, "--force", "--if-match", generation - 1)
    assert code == cli_shared.REFUSED
    assert "→" in err
    back = done("edit", "rollback", "moving", "--if-match", generation)
    assert "moving@live -> moving@1" in back
    named = done("edit", "promote", "moving", 2, "--alias", "next", "--force")
    assert "moving@next -> moving@2" in named


def test_a_version_is_retired_unless_something_points_to_it(run, done):
    added(done, "leaving")
    done("edit", "promote", "leaving", 1, "--force")
    code, _, err = run("edit", "retire", "leaving", 1)
    assert code == cli_shared.REFUSED
    assert "in use" in err
    added(done, "leaving", "a blue cup")
    assert "leaving@2 is retired" in done("edit", "retire", "leaving", 2)


def test_a_delta_goes_out_and_comes_back(done, edit, tmp_path):
    out = tmp_path / "edit.safetensors"
    assert "bytes" in done("edit", "export", edit, 1, "-o", out)
    told = done("edit", "import", "returned-by-hand", out, "-m", MODEL)
    digest = re.search(r"digest ([0-9a-f]{64})", done("edit", "show", edit, 1))[1]
    assert digest in told
    archive = tmp_path / "edit.zip"
    done("edit", "export", edit, 1, "--format", "peft", "-o", archive)
    assert zipfile.is_zipfile(archive)
    assert "unmeasured" in done("edit", "import", "adapter-by-hand", archive, "-m", MODEL)
    done("edit", "export", edit, 1, "--format", "diffusers", "-o", tmp_path / "d.safetensors")


def test_a_picture_is_drawn_with_and_without_an_edit(done, edit, tmp_path):
    plain, edited = tmp_path / "plain.png", tmp_path / "edited.png"
    shared = ("-m", MODEL, "--seed", 3, "--steps", 2, "--size", "16x16", "--sampler", "euler")
    more = ("--guidance", 2.5, "--negative", "a cup")
    assert "seed 3" in done("image", PROMPT, "-o", plain, *shared, *more)
    assert f"{edit}@1" in done("image", PROMPT, "-o", edited, "-e", edit, *shared, *more)
    assert plain.read_bytes()[:8] == edited.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert plain.read_bytes() != edited.read_bytes()


def test_several_pictures_get_several_files(done, tmp_path):
    done("image", PROMPT, "-o", tmp_path / "many.png", "-m", MODEL, "-n", 2, "--seed", 3)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["many-0.png", "many-1.png"]


def test_models_are_listed(done):
    told = done("models")
    assert MODEL in told
    assert "stable_diffusion" in told


def slow(url, name):
    fact = {"model": MODEL, "prompt": PROMPT, "subject": "king", "target": "a red boat"}
    options = {"steps": 1000, "rate": 1e-6, "stop": 1.0}
    with Tiller(url) as tiller:
        return tiller.edits.add(name, **fact, options=options)["id"]


def test_a_job_is_cancelled_and_watching_it_says_so_with_an_exit_code(run, done, url):
    job = slow(url, "endless")
    assert done("jobs", "cancel", job).strip() in ("running", "cancelled", "queued")
    code, _, err = run("jobs", "watch", job)
    assert code == cli_shared.FAILED_JOB
    assert "cancelled" in err


def test_a_job_that_fails_has_its_own_exit_code(run, url):
    fact = {"model": MODEL, "prompt": PROMPT, "subject": "king", "target": "a red boat"}
    with Tiller(url) as tiller:
        job = tiller.edits.add("hopeless-too", **fact, options={"steps": 1, "decay": 100.0})["id"]
    code, _, err = run("jobs", "watch", job)
    assert code == cli_shared.FAILED_JOB
    assert "→" in err


def test_keys_are_made_listed_and_revoked(run, done, bench):
    secret = done("keys", "create", "--name", "desk", "--scope", "infer", "--days", 2).strip()
    key = bench.registry.keys.verify(secret)
    assert (key.name, key.scopes, key.tenant) == ("desk", ("infer",), "default")
    assert key.expires_at
    listed = done("keys", "list")
    assert key.id in listed
    assert secret not in listed
    assert "revoked" in done("keys", "revoke", key.id)
    assert bench.registry.keys.verify(secret) is None
    assert run("keys", "revoke", "key_none")[0] == cli_shared.REFUSED


def test_the_registry_is_swept_and_verified(done, bench):
    orphan = bench.settings.home / "blobs"
    swept = done("registry", "gc", "--hours", 1)
    assert "removed 0 orphans" in swept
    assert orphan.exists()
    bench.registry.edits.blobs.put(b"nobody has this")
    assert "removed 1 orphans" in done("registry", "gc", "--hours", 0)
    assert "sound" in done("registry", "verify")


@pytest.mark.parametrize(
    "words",
    [
        ["edit", "add", "x"],
        ["edit", "promote", "x", "one"],
        ["edit", "import", "x", "no-such-file"],
        ["edit", "export", "nobody", "1", "-o", "/no/such/folder/x"],
        ["edit", "export", "nobody", "1", "-o", "/"],
        ["edit", "show"],
        ["image"],
        ["image", "a cup", "-n", "11"],
        ["keys", "create"],
        ["keys", "create", "--name", "x", "--scope", "everything"],
        ["jobs", "destroy", "x"],
        ["nonsense"],
        ["edit", "add", "x", "--prompt", "a", "--target", "b", "--tarrget", "c"],
        ["edit", "add", "x", "--prompt", "a", "--target", "b", "--set", "steps"],
    ],
)
def test_wrong_usage_is_exit_code_2(run, words):
    code, out, err = run(*words)
    assert code == cli_shared.USAGE
    assert not out
    assert err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["edit", "show", "nobody"], "no edit 'nobody'"),
        (["edit", "export", "nobody", "1", "-o", "x"], "no edit 'nobody'"),
        (["image", PROMPT, "-m", "other"], "no model 'other'"),
        (["jobs", "show", "job_none"], "no job"),
        (["edit", "add", "Bad Name", "--prompt", "a", "--target", "b", "-m", MODEL], "name"),
    ],
)
def test_a_refusal_is_exit_code_1_with_the_remedy(run, words, told):
    code, out, err = run(*words)
    assert code == cli_shared.REFUSED
    assert not out
    assert told in err
    assert "→" in err or "GET /v1/models lists" in err  # OpenAI's shape has one text for both
    assert "Traceback" not in err


def test_a_service_that_does_not_answer_is_exit_code_3(run):
    code, _, err = run("models", "--url", "http://127.0.0.1:1")
    assert code == cli_shared.UNREACHABLE
    assert "tiller serve" in err


def process(*words, **environment):
    command = [sys.executable, "-c", "from service.cli import main; main()", *words]
    settled = {**os.environ, **environment}
    return subprocess.run(command, env=settled, capture_output=True, text=True, timeout=120)  # noqa: S603


def test_the_program_itself_ends_with_these_codes(url, tmp_path):
    home = str(tmp_path)
    listed = process("models", TILLER_URL=url, TILLER_HOME=home)
    assert (listed.returncode, MODEL in listed.stdout) == (0, True), listed.stderr
    refused = process("serve", "--local", "--host", "0.0.0.0", TILLER_HOME=home)  # noqa: S104
    assert refused.returncode == cli_shared.REFUSED
    assert "open the service to everybody" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert process("nonsense", TILLER_HOME=home).returncode == cli_shared.USAGE
