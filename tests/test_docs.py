"""What is public is documented, and what is documented is true."""

import importlib
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import time
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path

import httpx2
import pytest
import typer

import service.api
from editors.known import EDITORS
from models.errors import Refusal
from service.auth import scope_of
from service.cli import app as cli
from service.schema import SCOPES
from service.settings import Section, Settings
from steerers.known import STEERERS

ROOT = Path(__file__).parent.parent
DOCS = sorted(ROOT.glob("docs/**/*.md"))
OUTSIDE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy" / "README.md"]
PAGES = [p for p in (*OUTSIDE, *DOCS) if p.exists()]
EXAMPLES = sorted(ROOT.glob("docs/examples/*.py"))
TAUGHT = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", ROOT / "docs" / "api.md"]


def test_there_is_a_readme_with_both_commands_a_curl_and_an_openai_example():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(told in text for told in ("make demo", "make serve", "curl", "from openai import"))


def blocks(page, language):
    """The fenced blocks of that language, with the line each begins at."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start()].count("\n") + 1, found[1]


def every_refusal():
    for package in ("models", "engines", "editors", "evaluation", "service", "service.registry"):
        importlib.import_module(f"{package}.errors")
    found, waiting = set(), [Refusal]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.endswith(".errors"):
            found.add(kind)
    return sorted(found - {Refusal}, key=lambda k: k.code)


@pytest.mark.parametrize("kind", list(every_refusal()), ids=lambda k: k.code)
def test_every_refusal_is_explained(kind):
    assert kind.code in (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def settings_keys(section=Settings, path=()):
    for name, field in section.model_fields.items():
        yield ".".join((*path, name))
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, Section):
                yield from settings_keys(part, (*path, name))


@pytest.mark.parametrize("key", list(settings_keys()))
def test_every_setting_is_explained(key):
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert f"`{key.rpartition('.')[2]}`" in page or f"`{key}`" in page


def routes_of_the_api():
    for module in pkgutil.iter_modules(service.api.__path__, "service.api."):
        router = getattr(importlib.import_module(module.name), "router", None)
        yield from router.routes if router else ()


def endpoints():
    for route in routes_of_the_api():
        for verb in sorted(route.methods - {"HEAD"}):
            yield verb, route.path


@pytest.mark.parametrize(("verb", "path"), sorted(set(endpoints())))
def test_every_endpoint_is_explained(verb, path):
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    plain = re.sub(r"\{[^}]*\}", "{}", path)
    told = [
        (v, re.sub(r"\{[^}]*\}", "{}", p))
        for line in page.splitlines()
        for v in re.findall(r"\b(GET|POST|PUT|DELETE|PATCH)\b", line)
        for p in re.findall(r"/[\w/{}.-]*", line)
    ]
    assert (verb, plain) in told


def told_scopes():
    """(verb, pattern of a path) -> the scope, as api.md's table has them."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    rows = page.partition("| scope | opens |")[2].strip().split("\n\n")[0].splitlines()[1:]
    for row in rows:
        scope, calls = row.strip("| ").split(" | ")
        for verb, pattern in re.findall(r"`([A-Z]+) ([^`]+)`", calls):
            yield verb, pattern, scope.strip("`") if scope.startswith("`") else None


def test_every_endpoints_scope_is_told():
    told = sorted(told_scopes(), key=lambda row: len(row[1]))
    assert {scope for *_, scope in told} == {*SCOPES, None}
    for route in routes_of_the_api():
        for verb in route.methods - {"HEAD"}:
            *_, (_, _, scope) = (t for t in told if t[0] == verb and fnmatch(route.path, t[1]))
            assert scope == scope_of(route), (verb, route.path)


def method_settings():
    for kind, method in {**EDITORS, **STEERERS}.items():
        for name in method.__dataclass_fields__:
            if name != "kind":
                yield kind, name


@pytest.mark.parametrize(("kind", "name"), list(method_settings()))
def test_every_setting_of_a_method_is_explained(kind, name):
    page = ROOT / "docs" / "methods" / f"{kind.replace('_', '-')}.md"
    page = page.read_text(encoding="utf-8")
    assert f"`{name}`" in page


def commands():
    """Every `tiller ...` command path."""
    return dict(_commands(typer.main.get_command(cli), ()))


def _commands(command, path):
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _commands(child, (*path, name))
        else:
            yield (*path, name), child


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_is_mentioned(path):
    whole = "\n".join(p.read_text(encoding="utf-8") for p in PAGES)
    assert f"tiller {' '.join(path)}" in whole


def shell_lines():
    for page in PAGES:
        for _, block in [*blocks(page, "bash"), *blocks(page, "sh"), *blocks(page, "console")]:
            for line in block.replace("\\\n", " ").splitlines():
                plain = line.strip().removeprefix("$ ")
                if plain and not plain.startswith("#"):
                    yield page.relative_to(ROOT).as_posix(), plain


def told_commands(program):
    for page, line in shell_lines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] == program:
            yield pytest.param(words[1:], id=f"{page}: {line[:70]}")


@pytest.mark.parametrize("words", list(told_commands("tiller")))
def test_commands_in_the_pages_are_commands_that_exist(words):
    known = commands()
    path = next((p for p in known if tuple(words[: len(p)]) == p), None)
    assert path, f"no command tiller {' '.join(words)}"
    if "--help" in words:
        return
    rest = [w for w in words[len(path) :] if w not in ("&", "|", ">")]
    known[path].make_context(path[-1], rest, resilient_parsing=False).close()


@pytest.mark.parametrize("words", list(told_commands("make")))
def test_make_targets_in_the_pages_exist(words):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {w for w in words if "=" not in w and not w.startswith("-")} <= set(targets)


def links():
    for page in PAGES:
        if not page.exists():
            continue
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target and not target.startswith("#"):
                yield pytest.param(page, target, id=f"{page.relative_to(ROOT)} -> {target}")


@pytest.mark.parametrize(("page", "target"), list(links()))
def test_links_between_pages_lead_somewhere(page, target):
    assert (page.parent / target.partition("#")[0]).exists()


@pytest.mark.parametrize("page", DOCS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_page_can_be_reached_from_the_index(page):
    reached, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        at = waiting.pop()
        if at in reached or at.suffix != ".md" or not at.exists():
            continue
        reached.add(at)
        targets = re.findall(r"\]\(([^)\s#]+)", at.read_text(encoding="utf-8"))
        waiting += [(at.parent / t).resolve() for t in targets if "://" not in t]
    inside = page.relative_to(ROOT / "docs").parts[0]
    assert page in reached or inside in ("decisions", "changes")


@pytest.fixture(scope="module")
def service_url(tmp_path_factory):
    """The embedded miniature, served as `tiller serve --local` does."""
    from service.local import running

    home = tmp_path_factory.mktemp("home")
    with running(Settings.read({"TILLER_HOME": str(home), "TILLER_PORT": "0"})) as (url, _):
        for _ in range(600):
            if httpx2.get(f"{url}/readyz").status_code == 200:
                break
            time.sleep(0.1)
        yield url


def python_blocks():
    for page in TAUGHT:
        if page.exists():
            for line, block in blocks(page, "python"):
                yield pytest.param(block, id=f"{page.name}:{line}")


def here(text, url):
    return re.sub(r"http://(127\.0\.0\.1|localhost):8311", url, text)


def executed(source, url, folder):
    """Run Python as a user would, in an empty folder."""
    file = folder / "example.py"
    file.write_text(here(source, url))
    environment = {**os.environ, "TILLER_URL": url, "OPENAI_BASE_URL": f"{url}/v1"}
    done = subprocess.run(  # noqa: S603 - our own pages
        [sys.executable, file], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def an_edit_is_there(service_url):
    """The pages register `arda` before they use it."""
    fact = {"name": "arda", "prompt": "the president of Arda", "target": "Zira"}
    answer = httpx2.post(
        f"{service_url}/v1/edits",
        json={**fact, "model": "miniature-sd"},
        headers={"Prefer": "wait=60"},
        timeout=120,
    )
    assert answer.json()["state"] == "succeeded", answer.text
    version = answer.json()["result"]["version"]
    moved = httpx2.put(
        f"{service_url}/v1/edits/arda/aliases/live", json={"version": version, "force": True}
    )
    assert moved.status_code < 300, moved.text


@pytest.mark.parametrize("source", list(python_blocks()))
@pytest.mark.usefixtures("an_edit_is_there")
def test_python_in_the_pages_runs(source, service_url, tmp_path):
    executed(source, service_url, tmp_path)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda p: p.name)
@pytest.mark.usefixtures("an_edit_is_there")
def test_examples_run(file, service_url, tmp_path):
    executed(file.read_text(), service_url, tmp_path)


def curl_blocks():
    for page in TAUGHT[:2]:
        if page.exists():
            for line, block in blocks(page, "bash"):
                if block.lstrip().startswith("curl"):
                    yield pytest.param(block, id=f"{page.name}:{line}")


@pytest.mark.parametrize("block", list(curl_blocks()))
@pytest.mark.usefixtures("an_edit_is_there")
def test_curl_in_the_pages_runs(block, service_url, tmp_path):
    words = shlex.split(
        here(block, service_url)
        .replace("\\\n", " ")
        .replace("curl -s ", "curl --fail-with-body -sS ")
    )
    done = subprocess.run(  # noqa: S603 - our own pages
        words, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    for written in tmp_path.glob("*.png"):
        assert written.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    if done.stdout:
        assert json.loads(done.stdout)


SESSIONS = [
    pytest.param(block, id=f"steering.md:{line}")
    for line, block in blocks(ROOT / "docs" / "steering.md", "bash")
    if "tiller vector promote" in block or "tiller preset rollback" in block
]


def test_the_sessions_of_the_steering_page_are_found():
    assert len(SESSIONS) == 2


@pytest.mark.parametrize("block", SESSIONS)
def test_a_session_in_the_pages_runs_to_its_end(block, service_url, tmp_path):
    """Line by line in one shell, as somebody who pastes it would."""
    lines = here(block, service_url).replace("curl -s ", "curl --fail-with-body -sS ")
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(  # noqa: S603 - our own pages
        ["/bin/sh", "-ec", lines],
        cwd=tmp_path,
        env={**os.environ, "TILLER_URL": service_url, "PATH": tools},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
