"""The files: named by the SHA-256 of their bytes, written so that a crash leaves no half one.

Local folders: `.part` in the same folder, fsync, rename, fsync of the folder. Object stores: one
conditional put. The bytes are hashed at every read.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec

from service.registry.disk import make_folder, sync_folder
from service.registry.errors import BadStore, BlobCorrupt, BlobMissing

_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    """SHA-256, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One file of the store, as gc sees it.

    Attributes:
        digest: None for a `.part` file.
        age: Seconds since it was written.
    """

    key: str
    digest: str | None
    size: int
    age: float


class Blobs(Protocol):
    """A store of files by digest."""

    def put(self, data: bytes) -> str:
        """Keep the bytes, durably, and return their digest; a damaged file is written anew."""
        ...

    def get(self, digest: str) -> bytes:
        """The bytes.

        Raises:
            BlobMissing: There is no such file.
            BlobCorrupt: Its bytes have another hash.
        """
        ...

    def has(self, digest: str) -> bool:
        """Whether there is such a file; its bytes are not looked at."""
        ...

    def stored(self) -> Iterator[Stored]:
        """Every file, unfinished ones too."""
        ...

    def key(self, digest: str) -> str:
        """Where the store keeps a digest's file."""
        ...

    def remove(self, key: str) -> None:
        """Remove a file; nothing happens if it is gone already."""
        ...


def open_blobs(url: str) -> Blobs:
    """A local folder (a path or file://) or any fsspec store.

    Raises:
        BadStore: An unknown protocol, or its package is not installed.
    """
    if not url:
        raise BadStore("(empty)", "an address for the blobs is needed")
    if "://" not in url or url.startswith("file://"):
        return LocalBlobs(root=Path(url.removeprefix("file://")).expanduser().absolute())
    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise BadStore(url, str(error)) from error
    return RemoteBlobs(store=store, root=root.rstrip("/"))


@dataclass(frozen=True, kw_only=True)
class LocalBlobs:
    """Files in `<root>/<first two digits>/<digest>`."""

    root: Path

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        digest = digest_of(data)
        final = self._path(digest)
        if self._keeps(final, digest):
            return digest
        make_folder(final.parent)
        part = final.with_name(f"{digest}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(final)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(final.parent)
        return digest

    def _keeps(self, final: Path, digest: str) -> bool:
        """Whether the file is there and sound; then it counts as new, so that gc spares it."""
        try:
            sound = digest_of(final.read_bytes()) == digest
            if sound:
                os.utime(final)
                # Another process may have renamed it and not yet synced the folder.
                sync_folder(final.parent)
        except FileNotFoundError:
            return False
        return sound

    def get(self, digest: str) -> bytes:
        """See `Blobs.get`."""
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError:
            raise BlobMissing(digest) from None
        return _verified(data, digest)

    def has(self, digest: str) -> bool:
        """See `Blobs.has`."""
        return self._path(digest).is_file()

    def stored(self) -> Iterator[Stored]:
        """See `Blobs.stored`."""
        now = time.time()
        for path in sorted(self.root.glob("[0-9a-f][0-9a-f]/*")):
            digest = path.name if _DIGEST.fullmatch(path.name) else None
            if digest is None and path.suffix != ".part":
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            key = str(path.relative_to(self.root))
            yield Stored(key=key, digest=digest, size=stat.st_size, age=now - stat.st_mtime)

    def key(self, digest: str) -> str:
        """See `Blobs.key`."""
        return f"{_checked(digest)[:2]}/{digest}"

    def remove(self, key: str) -> None:
        """See `Blobs.remove`."""
        (self.root / key).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self.root / self.key(digest)


@dataclass(frozen=True, kw_only=True)
class RemoteBlobs:
    """Objects in `<root>/<digest>` of a store whose puts are whole or not at all."""

    store: Any
    root: str

    def put(self, data: bytes) -> str:
        """See `Blobs.put`."""
        digest = digest_of(data)
        try:
            self.store.pipe_file(self._path(digest), data, mode="create")
        except FileExistsError:
            self._renew(digest, data)
        return digest

    def _renew(self, digest: str, data: bytes) -> None:
        try:
            self.get(digest)
        except (BlobCorrupt, BlobMissing):
            self.store.pipe_file(self._path(digest), data)

    def get(self, digest: str) -> bytes:
        """See `Blobs.get`."""
        try:
            data = self.store.cat_file(self._path(digest))
        except FileNotFoundError:
            raise BlobMissing(digest) from None
        return _verified(data, digest)

    def has(self, digest: str) -> bool:
        """See `Blobs.has`."""
        self.store.invalidate_cache()
        return bool(self.store.exists(self._path(digest)))

    def stored(self) -> Iterator[Stored]:
        """See `Blobs.stored`."""
        self.store.invalidate_cache()
        now = time.time()
        for path, about in sorted(self.store.find(self.root, detail=True).items()):
            name = path.rsplit("/", 1)[-1]
            if _DIGEST.fullmatch(name):
                age = now - self.store.modified(path).timestamp()
                yield Stored(key=name, digest=name, size=int(about["size"]), age=age)

    def key(self, digest: str) -> str:
        """See `Blobs.key`."""
        return _checked(digest)

    def remove(self, key: str) -> None:
        """See `Blobs.remove`."""
        try:
            self.store.rm_file(f"{self.root}/{key}")
        except FileNotFoundError:
            return

    def _path(self, digest: str) -> str:
        return f"{self.root}/{self.key(digest)}"


def _checked(digest: str) -> str:
    # A digest becomes part of a path: nothing but 64 hexadecimal digits may.
    if not _DIGEST.fullmatch(digest):
        raise BlobMissing(digest)
    return digest


def _verified(data: bytes, digest: str) -> bytes:
    if digest_of(data) != digest:
        raise BlobCorrupt(digest)
    return data
