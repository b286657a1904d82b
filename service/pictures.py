"""Pictures that were asked for as an address: files, bounded in bytes and in age."""

import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from service.errors import PictureGone


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """PNG files under names that nobody can guess; the name is the permission, as with OpenAI."""

    folder: Path
    capacity_bytes: int
    seconds: float

    def keep(self, png: bytes) -> str:
        """Store a picture, forget the oldest ones beyond the capacity; its name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = secrets.token_urlsafe(32)
        part = self.folder / f"{name}.part"
        part.write_bytes(png)
        part.rename(self.folder / f"{name}.png")
        self._forget()
        return name

    def read(self, name: str) -> bytes:
        """The picture.

        Raises:
            PictureGone: It has expired, or never was.
        """
        path = self.folder / f"{name}.png"
        try:
            if path.parent != self.folder or time.time() - path.stat().st_mtime > self.seconds:
                raise PictureGone
            return path.read_bytes()
        except OSError:
            raise PictureGone from None

    def _forget(self) -> None:
        kept, now = 0, time.time()
        for stamp, size, path in sorted(self._stored(), reverse=True):
            kept += size
            if kept > self.capacity_bytes or now - stamp > self.seconds:
                path.unlink(missing_ok=True)

    def _stored(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob("*.p*"):
            try:
                found.append((path.stat().st_mtime, path.stat().st_size, path))
            except OSError:  # another gateway was faster
                continue
        return found
