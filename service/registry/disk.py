"""Where a file lies, and what makes a write to it survive a crash."""

import os
from pathlib import Path

from service.registry.errors import RemoteDisk

MOUNTS = Path("/proc/self/mountinfo")

_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "davfs"}  # file servers
    | {"ceph", "glusterfs", "lustre", "beegfs", "gpfs", "wekafs", "orangefs", "pvfs2"}  # clusters
    | {"gfs", "gfs2", "ocfs2", "acfs"}  # shared block devices
)
_LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.mergerfs", "fuse.bindfs"})


def refuse_remote_disk(folder: Path) -> None:
    """Refuse a folder on a network filesystem; unknown where the kernel does not tell.

    Raises:
        RemoteDisk: Its locks and shared memory cannot be trusted.
    """
    if not MOUNTS.exists():
        return
    kind = filesystem_of(folder.resolve(), MOUNTS.read_text())
    if kind in _REMOTE or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE):
        raise RemoteDisk(str(folder), kind)


def filesystem_of(path: Path, mountinfo: str) -> str:
    """The type of the filesystem that an absolute path lies on; "" if no mount fits.

    Source: proc(5), /proc/pid/mountinfo. The longest mount point wins, of equal ones the last.
    """
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        if not separator:
            continue
        point = _unescaped(left.split(" ")[4])
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), right.split(" ")[0]
    return kind


def _unescaped(point: str) -> str:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(octal, character)
    return point


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (a rename, a new file) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, each so that it survives a power cut."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, f in enumerate(missing) if f.is_dir())]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
        sync_folder(one.parent)
