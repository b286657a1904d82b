import os
import time

import pytest

from service.registry import errors
from service.registry.limits import Limits

HOUR = 3600.0


def grow_old(registry, key, seconds=2 * HOUR):
    then = time.time() - seconds
    os.utime(registry.store.root / key, (then, then))


def test_gc_removes_old_orphans_and_parts_and_nothing_else(registry, add):
    kept = add(data=b"kept")
    orphan, young = registry.store.put(b"orphan"), registry.store.put(b"young")
    part = registry.store.key(orphan) + ".1234.part"
    fresh = registry.store.key(young) + ".5678.part"
    for key in (part, fresh):
        (registry.store.root / key).write_bytes(b"half")
    stranger = registry.store.root / "notes.txt"
    stranger.write_text("not ours")
    for key in (registry.store.key(kept.digest), registry.store.key(orphan), part):
        grow_old(registry, key)
    swept = registry.gc()
    assert (swept.orphans, swept.parts, swept.nbytes) == ((orphan,), (part,), 10)
    assert registry.store.has(kept.digest)
    assert registry.store.has(young)
    assert (registry.store.root / fresh).exists()
    assert stranger.exists()
    row = registry.audit.list(None, 1).items[0]
    assert (row.action, row.detail["orphans"], row.detail["parts"]) == ("registry.gc", 1, 1)
    before = registry.events.latest()
    assert registry.gc().nbytes == 0
    assert registry.events.latest() == before  # nothing done, nothing said
    assert registry.gc(0).orphans == (young,)
    assert registry.verify().sound


def test_a_file_that_gc_takes_at_the_last_moment_is_written_again(registry, add, monkeypatch):
    put = registry.store.put

    def put_and_lose(_store, data):
        digest = put(data)
        monkeypatch.undo()  # once: what follows is the real thing
        registry.gc(0)
        return digest

    monkeypatch.setattr(type(registry.store), "put", put_and_lose)
    version = add(data=b"contested")
    assert registry.edits.blob(version.digest) == b"contested"


def test_a_retired_versions_file_goes_after_its_time_and_its_record_stays(opened):
    patient, registry = opened(), opened(Limits(retired_seconds=0.01))

    def add(name, data):
        return registry.edits.register("acme", name, "sd", "f", data, {}, actor="ann")

    gone, shared = add("a", b"gone"), add("a", b"shared")
    add("b", b"shared")
    for number in (1, 2):
        registry.edits.retire("acme", "a", number, "ann")
    assert patient.gc(0).retired == ()
    time.sleep(0.05)
    swept = registry.gc(0)
    assert (swept.retired, swept.nbytes) == ((gone.digest,), 4)
    assert registry.edits.version("acme", "a", 1).status == "retired"
    with pytest.raises(errors.BlobMissing):
        registry.edits.blob(gone.digest)
    assert registry.edits.blob(shared.digest) == b"shared"
    assert registry.verify().sound
    assert registry.gc(0).retired == ()
    back = add("a", b"gone")
    assert (back.number, registry.edits.blob(back.digest)) == (3, b"gone")
    assert registry.gc(0).retired == ()


def test_gc_forgets_old_jobs_with_their_events(opened):
    registry = opened(Limits(finished_jobs_seconds=0.05))
    old, running = (registry.jobs.create("acme", "fit", "sd", {}, "ann") for _ in range(2))
    registry.jobs.cancel(old.id, "ann")
    time.sleep(0.1)
    assert registry.gc().jobs == 1
    with pytest.raises(errors.UnknownJob):
        registry.jobs.get(old.id)
    assert len(registry.jobs.events(running.id)) == 1


def test_verify_finds_what_is_missing_and_what_is_damaged(registry, add):
    versions = [add() for _ in range(3)]
    health = registry.verify()
    assert (health.sound, health.versions, health.blobs) == (True, 3, 3)
    registry.store.remove(registry.store.key(versions[0].digest))
    (registry.store.root / registry.store.key(versions[1].digest)).write_bytes(b"rotten")
    health = registry.verify()
    assert (health.missing, health.corrupt) == ((versions[0].digest,), (versions[1].digest,))
    assert not health.sound
    with pytest.raises(errors.BlobCorrupt):
        registry.edits.blob(versions[1].digest)
