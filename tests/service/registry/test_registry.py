import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[3]
KILLS = 50

WRITER = """
import sys
from service.registry import open_registry
index, blobs, name = sys.argv[1:]
registry = open_registry(index, blobs)
for i in range(12):
    registry.edits.register("acme", "potus", "sd", "f", f"{name} {i}".encode(), {}, actor=name)
registry.close()
"""


def test_four_processes_that_write_at_once_number_densely(registry, index_url, blobs_url):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", WRITER, index_url, blobs_url, f"w{i}"], env=environment
        )
        for i in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    versions = registry.edits.versions("acme", "potus", 100).items
    assert [v.number for v in versions] == list(range(48, 0, -1))
    assert {v.created_by for v in versions} == {"w0", "w1", "w2", "w3"}
    assert len({v.digest for v in versions}) == 48
    assert registry.verify().sound
    assert registry.verify().chain.rows == 48


def test_a_registering_process_can_be_killed_at_any_moment(opened, nursery, index_url, blobs_url):
    if index_url.startswith("sqlite"):  # from the very first moment: nothing is migrated yet
        Path(index_url.removeprefix("sqlite:///")).unlink()
    random = Random(7)  # noqa: S311
    promised: list[tuple[int, str]] = []
    for kill in range(KILLS):
        child = nursery.fork("register", index_url, blobs_url)
        said = [nursery.hear() for _ in range(kill % 3)]  # opening, opened, or well at work
        time.sleep(random.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        said = [line.split() for line in said + nursery.rest() if line != "open"]
        promised += [(int(number), digest) for number, digest in said]

    registry = opened()
    health = registry.verify()
    assert health.sound, health
    assert health.versions >= len(promised) >= KILLS // 3
    kept = {v.number: v.digest for v in every_version(registry)}
    assert sorted(kept) == list(range(1, health.versions + 1))
    # What a process was told was kept is kept.
    assert dict(promised).items() <= kept.items()
    assert health.chain.rows == health.versions

    registry.gc(older_than=0)
    assert {s.digest for s in registry.store.stored()} == set(kept.values())
    assert registry.verify().sound
    after = registry.edits.register("acme", "potus", "sd", "f", b"next", {}, actor="ann")
    assert after.number == health.versions + 1


def every_version(registry):
    after = None
    while True:
        page = registry.edits.versions("acme", "potus", 1000, after)
        yield from page.items
        if not page.has_more:
            return
        after = page.next_cursor


def test_a_restart_forgets_nothing(opened, add, registry):
    add()
    registry.names.move("acme", "potus", "live", 1, "ann")
    registry.variants.put("acme", "v", "sd", ["potus@live"], actor="ann")
    job = registry.jobs.create("acme", "fit", "sd", {"a": 1}, "ann")
    secret, key = registry.keys.create("acme", ["infer"], None, "k", actor="root")
    again = opened()
    assert again.names.resolve("acme", "potus") == registry.names.resolve("acme", "potus@1")
    assert again.variants.get("acme", "v") == registry.variants.get("acme", "v")
    assert again.jobs.get(job.id) == registry.jobs.get(job.id)
    assert again.keys.verify(secret) == key
    assert again.events.since(0) == registry.events.since(0)


def test_opening_the_registry_brings_in_no_framework():
    program = (
        "import sys, service.registry as r; r.open_registry;"
        "print([m for m in ('torch', 'ray', 'fastapi', 'pydantic', 'alembic') if m in sys.modules])"
    )
    said = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert said.stdout.strip() == "[]"


def test_the_example_in_the_documentation_is_true(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "registry.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "docs/registry.md", "exec"), {})  # noqa: S102
