"""The files of one SAE or vector: a local folder or file, or a folder of a hub repository.

JSON, safetensors and npz are read; a pickle only if torch's `weights_only` reading finds nothing
but plain tensors, numbers and texts in it. Nothing here runs code from a file.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steerers.errors import BadFile, FilesNotFound, PickleRefused

FILE_BYTES = 24 * 1024**3
"""The largest file that is opened: a million features of width 2,304 in float32 are 21 GB."""

_JSON_BYTES = 4 * 1024**2
_PICKLES = (".pt", ".pth", ".bin")
_READ = (".json", ".npz", ".npy", ".gguf", ".safetensors", *_PICKLES)
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<inner>[^@]*))?")
_UNREACHABLE = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)


@dataclass(frozen=True)
class Source:
    """Where one SAE or vector lies.

    Attributes:
        folder: Its folder on this machine.
        origin: What was asked for: a path, or owner/repository/folder on the hub. Layouts that
            declare nothing are known by the names in it.
        only: The one file that was asked for, or None for the folder.
    """

    folder: Path
    origin: str
    only: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the origin, outermost first."""
        return tuple(part for part in re.split(r"[/\\]", self.origin) if part)

    @property
    def name(self) -> str:
        """What it is called where nobody says: the hub's names, or the folder's or file's."""
        return self.origin if not Path(self.origin).exists() else Path(self.origin).stem

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The files in the folder, or the one that was asked for."""
        if self.only is not None:
            return (self.only,)
        return tuple(sorted(f.name for f in self.folder.iterdir() if f.is_file()))

    def has(self, *names: str) -> bool:
        """Whether all these files are there."""
        return all((self.folder / n).is_file() if "/" in n else n in self.names for n in names)

    def ending(self, *suffixes: str) -> tuple[str, ...]:
        """The files with one of these endings."""
        return tuple(name for name in self.names if name.endswith(suffixes))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; {} where there is none.

        Raises:
            BadFile: Not a JSON object, or too large.
        """
        path = self.folder / name
        if not path.is_file():
            return {}
        _check_size(path, _JSON_BYTES)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as broken:
            raise BadFile(f"{name} of {self.origin} is not JSON.") from broken
        if not isinstance(found, dict):
            raise BadFile(f"{name} of {self.origin} is not a JSON object.")
        return found

    @cached_property
    def card(self) -> dict[str, Any]:
        """What a `tiller.json` beside the files states: `id`, `site`, `model`, `declared`."""
        return self.json("tiller.json")

    def tensors(self, name: str) -> dict[str, Any]:
        """The contents of a file by name; a pickle may hold numbers and texts beside tensors.

        Raises:
            BadFile: Broken or too large.
            PickleRefused: It would have to run code, or holds more than plain contents.
        """
        return read_tensors(self.folder / name)


def find(where: str | Path, revision: str | None = None, cache: Path | None = None) -> Source:
    """The files at a path or on the hub; of a hub folder only its own files are fetched.

    Args:
        where: A folder, a file, or `owner/repository[@revision][/folder or file]`.
        revision: A branch, tag or commit of the hub repository.
        cache: The hub's cache folder; None is its default.

    Raises:
        FilesNotFound: There is nothing there.
    """
    path = Path(where)
    if path.is_dir():
        return Source(path, str(where))
    if path.is_file():
        return Source(path.parent, str(where), only=path.name)
    asked = _HUB.fullmatch(str(where))
    if asked is None:
        raise FilesNotFound(str(where))
    inner = (asked["inner"] or "").strip("/")
    root = _fetched(asked["repo"], inner, revision or asked["revision"], cache)
    origin, found = "/".join(filter(None, (asked["repo"], inner))), root / inner
    if found.is_file():
        return Source(found.parent, origin, only=found.name)
    if not found.is_dir():
        raise FilesNotFound(str(where))
    return Source(found, origin)


def _fetched(repo: str, inner: str, revision: str | None, cache: Path | None) -> Path:
    """The repository's folder in the cache, with the files of `inner` in it."""
    place = {"revision": revision, "cache_dir": cache}
    try:
        listed = HfApi().list_repo_files(repo, revision=revision)
    except _UNREACHABLE:
        try:
            return Path(snapshot_download(repo, local_files_only=True, **place))
        except _UNREACHABLE as error:
            raise FilesNotFound(f"{repo}/{inner}") from error
    wanted = [n for n in listed if n.endswith(_READ) and _belongs(n, inner)]
    if not wanted:
        raise FilesNotFound(f"{repo}/{inner}")
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, **place))
    except _UNREACHABLE as error:
        raise FilesNotFound(f"{repo}/{inner}") from error


def _belongs(name: str, inner: str) -> bool:
    """Whether a file of a repository is one of an SAE's: never those of the SAEs below it."""
    folder, _, _ = name.rpartition("/")
    return name == inner or folder in (inner, f"{inner}/checkpoints".lstrip("/"))


def read_tensors(path: Path, limit: int = FILE_BYTES) -> dict[str, Any]:
    """The contents of a safetensors, npz or npy file, or of a pickle of plain contents.

    A file that holds one tensor without a name gives it the name "".

    Args:
        path: The file.
        limit: Its largest size in bytes, unpacked.

    Raises:
        BadFile: Broken or too large.
        PickleRefused: It would have to run code, or holds more than plain contents.
    """
    if not path.is_file():
        raise BadFile(f"There is no file {path.name}.")
    _check_size(path, limit)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if path.suffix in (".npz", ".npy"):
            return _arrays(path)
        if path.suffix in _PICKLES:
            return _plain(path)
    except (SafetensorError, EOFError, OSError, RuntimeError, ValueError) as broken:
        raise BadFile(f"{path.name} cannot be read: {type(broken).__name__}.") from broken
    raise BadFile(f"{path.name} is not safetensors, npz or a torch file.")


def numbers(contents: Mapping[str, Any], *names: str) -> tuple[Tensor, ...]:
    """Tensors of a file in float32, by name; of `a|b` whichever is there.

    Raises:
        BadFile: One is missing, or is no tensor.
    """
    found: list[Tensor] = []
    for name in names:
        either = [contents[n] for n in name.split("|") if n in contents]
        if not either or not isinstance(either[0], Tensor):
            raise BadFile(f"The file has no tensor {name}; it has {sorted(contents)[:8]}.")
        found.append(either[0].float())
    return tuple(found)


def _arrays(path: Path) -> dict[str, Any]:
    loaded = np.load(path, allow_pickle=False)
    arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def _plain(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as refused:
        raise PickleRefused(path.name, "it holds more than plain tensors") from refused
    if not _is_plain(loaded):
        raise PickleRefused(path.name, "it holds more than tensors, numbers and texts")
    return {"": loaded} if isinstance(loaded, Tensor) else dict(loaded)


def _is_plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Mapping):
        inner = all(isinstance(k, str | int) and _is_plain(v, depth - 1) for k, v in value.items())
        return depth > 0 and inner
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(v, depth - 1) for v in value)
    return value is None or isinstance(value, Tensor | str | int | float | bool)


def _check_size(path: Path, limit: int) -> None:
    size = path.stat().st_size
    if size <= limit and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as packed:
                size = sum(part.file_size for part in packed.infolist())
        except (OSError, ValueError, zipfile.BadZipFile) as broken:
            raise BadFile(f"{path.name} cannot be read: {type(broken).__name__}.") from broken
    if size > limit:
        raise BadFile(f"{path.name} has {size} bytes; {limit} are read.")
