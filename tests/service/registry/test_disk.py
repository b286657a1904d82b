from pathlib import Path

import pytest

from service.registry import disk, open_registry
from service.registry.disk import filesystem_of, make_folder
from service.registry.errors import RemoteDisk

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:26 / /run rw - tmpfs tmpfs rw
41 22 0:44 / /mnt/share rw,relatime shared:9 - nfs4 server:/export rw,vers=4.2
42 41 254:2 / /mnt/share/local rw - xfs /dev/vdb rw
43 22 0:50 / /mnt/my\\040disk rw - fuse.sshfs me@host:/ rw
44 22 0:51 / /data rw - overlay overlay rw
45 22 0:52 / /data rw - cifs //host/data rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/run/x", "tmpfs"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/deep/er", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/x", "xfs"),
        ("/mnt/my disk/x", "fuse.sshfs"),
        ("/data/x", "cifs"),
    ],
)
def test_the_deepest_and_latest_mount_says_what_lies_there(path, kind):
    assert filesystem_of(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "ceph", "lustre", "fuse.sshfs", "fuse.s3fs"]
)
def test_sqlite_does_not_start_on_a_remote_disk(tmp_path, monkeypatch, kind):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path}/far rw - {kind} x rw\n")
    monkeypatch.setattr(disk, "MOUNTS", mounts)
    with pytest.raises(RemoteDisk, match=kind):
        open_registry(f"sqlite:///{tmp_path}/far/deep/index.sqlite", str(tmp_path / "blobs"))
    open_registry(f"sqlite:///{tmp_path}/near/index.sqlite", str(tmp_path / "blobs")).close()


def test_a_link_to_a_remote_disk_is_seen_through(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path}/far rw - nfs4 x rw\n")
    monkeypatch.setattr(disk, "MOUNTS", mounts)
    with pytest.raises(RemoteDisk):
        open_registry(f"sqlite:///{tmp_path}/link/index.sqlite", str(tmp_path / "blobs"))


def test_a_kernel_that_does_not_tell_is_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "MOUNTS", tmp_path / "nothing")
    open_registry(f"sqlite:///{tmp_path}/index.sqlite", str(tmp_path / "blobs")).close()


def test_new_folders_are_private(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert ((tmp_path / "a").stat().st_mode & 0o777) == 0o700
    make_folder(tmp_path / "a" / "b")
