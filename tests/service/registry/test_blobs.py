import hashlib
import os
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.registry import blobs as module
from service.registry.blobs import LocalBlobs, open_blobs
from service.registry.errors import BadStore, BlobCorrupt, BlobMissing


@pytest.fixture(params=["folder", "file", "memory"])
def store(request, tmp_path):
    return open_blobs(
        {
            "folder": str(tmp_path / "blobs"),
            "file": f"file://{tmp_path}/blobs",
            "memory": f"memory://{uuid.uuid4()}/blobs",
        }[request.param]
    )


def damage(store, digest):
    if isinstance(store, LocalBlobs):
        (store.root / store.key(digest)).write_bytes(b"rotten")
    else:
        store.store.pipe_file(f"{store.root}/{digest}", b"rotten")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary())
def test_bytes_come_back_under_their_sha256(store, data):
    digest = store.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert store.get(digest) == data
    assert store.has(digest)
    assert store.put(data) == digest


def test_damaged_bytes_are_never_handed_out_and_a_put_mends_them(store):
    digest = store.put(b"sound")
    damage(store, digest)
    with pytest.raises(BlobCorrupt):
        store.get(digest)
    store.put(b"sound")
    assert store.get(digest) == b"sound"


@pytest.mark.parametrize("digest", ["0" * 64, "", "..", "../../etc/passwd", "A" * 64, "0" * 63])
def test_what_is_no_digest_or_not_there_is_missing(store, digest):
    with pytest.raises(BlobMissing):
        store.get(digest)


def test_files_are_listed_and_removed(store):
    digests = sorted(store.put(bytes([i])) for i in range(5))
    found = list(store.stored())
    assert sorted(str(s.digest) for s in found) == digests
    assert all(s.size == 1 and -5 < s.age < 60 for s in found)
    store.remove(store.key(digests[0]))
    store.remove(store.key(digests[0]))
    assert not store.has(digests[0])
    assert len(list(store.stored())) == 4


def test_a_local_put_syncs_the_file_before_its_name_and_the_folder_after(tmp_path, monkeypatch):
    store = LocalBlobs(root=tmp_path / "blobs")
    steps = []
    fsync, replace = os.fsync, Path.replace

    def told_fsync(descriptor):
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("folder" if target.is_dir() else target.suffix)
        fsync(descriptor)

    def told_replace(self, target):
        steps.append("rename")
        return replace(self, target)

    store.put(b"the folders exist now")
    shard = hashlib.sha256(b"x").hexdigest()[:2]
    (tmp_path / "blobs" / shard).mkdir(exist_ok=True)
    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "replace", told_replace)
    store.put(b"x")
    assert steps == [".part", "rename", "folder"]


def test_a_put_that_fails_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    store = LocalBlobs(root=tmp_path / "blobs")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    store.put(b"first")
    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.put(b"second")
    monkeypatch.undo()
    assert [s.digest for s in store.stored()] == [hashlib.sha256(b"first").hexdigest()]


@pytest.mark.parametrize("url", ["", "nonsense://x"])
def test_an_unusable_address_is_refused(url):
    with pytest.raises(BadStore):
        open_blobs(url)
