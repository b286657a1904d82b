"""Control vectors: one direction per stream site; read from others' files, kept in one of ours.

Read: repeng's and llama.cpp's GGUF (`direction.N`), safetensors, npz and torch files of plain
tensors (EasyEdit and others) whose names say the layer, or a single vector with a site. `N` is the
layer behind which the vector is added, counted from 0. Kept: safetensors under one header, whose
hash is the version.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from jaxtyping import Float
from torch import Tensor

from models.errors import BadSite
from models.site import Site
from models.tensor_file import pack, unpack
from steerers.errors import BadFile, BadVector, FilesNotFound, SiteNotDeclared
from steerers.hook_names import site_of
from steerers.sources import read_tensors

FORMAT = 1
_FILE_BYTES = 64 * 1024 * 1024
_HEADER_BYTES = 1024 * 1024
_NUMBERED = re.compile(r"(?:(?:direction|layers?|blocks?|h)[._])?(\d+)(?:[._](?:weight|vector))?")


@dataclass(frozen=True, eq=False)
class Vectors:
    """One immutable version of a set of control vectors.

    Attributes:
        header: JSON values: `base`, `method`, `settings`, `texts`, ...
        vectors: (d) by canonical stream site, float32.

    Raises:
        BadVector: At construction: no vector, not one axis, not finite, zero, or at no stream.
    """

    header: Mapping[str, Any]
    vectors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        checked = {site: _checked(v, site) for site, v in sorted(self.vectors.items())}
        if not checked:
            raise BadVector("There is no vector.")
        object.__setattr__(self, "vectors", checked)

    @cached_property
    def data(self) -> bytes:
        """The safetensors file; the same bytes for the same vectors, in any process."""
        return pack(self.vectors, self.header, FORMAT)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file: the version's identity."""
        return hashlib.sha256(self.data).hexdigest()

    @classmethod
    def read(cls, data: bytes) -> "Vectors":
        """The vectors of a file of ours; BadVector if it is none, or its contents are not."""
        try:
            header, vectors = unpack(data, FORMAT, _FILE_BYTES, _HEADER_BYTES)
        except ValueError as broken:
            raise BadVector(str(broken)) from broken
        return cls(header, vectors)


def read_vectors(path: str | Path, *, site: str | None = None) -> Mapping[str, Float[Tensor, " d"]]:
    """The vectors of a file that somebody else wrote, or of ours, by canonical site.

    Args:
        path: GGUF, safetensors, npz, npy, or a torch file of plain tensors.
        site: The site of a single vector that has no name; of several, the one that is wanted.

    Raises:
        FilesNotFound: There is no such file.
        BadFile, PickleRefused: It cannot be read, or would have to run code.
        SiteNotDeclared: A vector's name says no layer.
        BadVector: A vector is of another shape, not finite or zero, or none is at `site`.
    """
    path = Path(path)
    if not path.is_file():
        raise FilesNotFound(str(path))
    contents = _directions(path) if path.suffix == ".gguf" else read_tensors(path, _FILE_BYTES)
    named = {name: value for name, value in contents.items() if isinstance(value, Tensor)}
    wanted = None if site is None else site_of(site)
    if len(named) == 1:
        ((name, value),) = named.items()
        place = _site(name) or _site(path.stem) or wanted
        found = {place: value}
    else:
        found = {_site(name): value for name, value in named.items()}
    if None in found:
        raise SiteNotDeclared(path.name)
    if len(found) < len(named):
        raise BadVector(f"{path.name} has several vectors for one site.")
    chosen = {s: v for s, v in found.items() if wanted in (None, s) and s is not None}
    if not chosen:
        raise BadVector(f"{path.name} has no vector for {wanted}.")
    return Vectors({}, chosen).vectors


def _site(name: str) -> str | None:
    """The site that a tensor's or a file's name says, or None."""
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        return site_of(f"layers.{numbered[1]}")
    known = re.match(r"(?:\w+\.)*(?:layers\.|hook_|block\.|embedding$)", name)
    return site_of(name) if known else None


def _directions(path: Path) -> dict[str, Tensor]:
    """The tensors of a control vector in GGUF; quantised ones are unpacked."""
    if path.stat().st_size > _FILE_BYTES:
        raise BadFile(f"{path.name} is larger than {_FILE_BYTES} bytes.")
    try:
        reader = GGUFReader(path)
        kind = reader.fields.get("general.architecture")
        if kind is None or kind.contents() != "controlvector":
            raise BadFile(f"{path.name} is no control vector: architecture {_text(kind)}.")
        return {
            t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
            for t in reader.tensors
        }
    except (IndexError, KeyError, NotImplementedError, OSError, ValueError) as broken:
        raise BadFile(f"{path.name} cannot be read: {type(broken).__name__}.") from broken


def _text(field: Any) -> str:
    return "unstated" if field is None else repr(field.contents())


def _checked(vector: Tensor, site: str) -> Tensor:
    try:
        stream = Site.parse(site).kind == "stream"
    except BadSite:
        stream = False
    if not stream:
        raise BadVector(f"{site} is no place of the residual stream.")
    flat = vector.detach().float()
    flat = flat[0] if flat.ndim == 2 and len(flat) == 1 else flat
    if flat.ndim != 1 or not len(flat):
        raise BadVector(f"The vector of {site} has shape {tuple(vector.shape)}.")
    if not bool(torch.isfinite(flat).all()):
        raise BadVector(f"The vector of {site} is not finite.")
    if not bool(flat.any()):
        raise BadVector(f"The vector of {site} is zero.")
    return flat.contiguous()
