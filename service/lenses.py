"""The logit lens of a whole dictionary: its index by token, and where it is kept on disk."""

from dataclasses import dataclass, fields
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from service.registry.disk import make_folder
from steerers.lens import LensIndex, LensTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Lens:
    """What every feature promotes and suppresses, and which features promote a token."""

    tokens: LensTokens
    index: LensIndex

    @classmethod
    def of(cls, tokens: LensTokens) -> "Lens":
        """With its index."""
        return cls(tokens=tokens, index=LensIndex.of(tokens.features, tokens.ids))

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        parts = [getattr(self.tokens, f.name) for f in fields(LensTokens)]
        return sum(p.nbytes for p in (*parts, self.index.tokens, self.index.features)) + (
            self.index.places.nbytes
        )


def chosen(tokens: LensTokens, features: list[int]) -> LensTokens:
    """The rows of some features of a lens of all of them, in their order."""
    rows = torch.tensor(features, dtype=torch.long)
    return LensTokens(**{f.name: getattr(tokens, f.name)[rows] for f in fields(LensTokens)})


@dataclass(frozen=True, kw_only=True)
class LensFiles:
    """Lenses on disk, by a key that covers everything that they depend on.

    They can be computed again: a file that cannot be read is as good as none.
    """

    folder: Path

    def read(self, key: str) -> LensTokens | None:
        """The lens of that key, if it is there and whole."""
        try:
            held = load(self._file(key).read_bytes())
            return LensTokens(**{f.name: held[f.name] for f in fields(LensTokens)})
        except (OSError, SafetensorError, KeyError):
            return None

    def write(self, key: str, tokens: LensTokens) -> None:
        """Keep a lens in the place of a damaged one; a crash leaves no half one."""
        make_folder(self.folder)
        held = {f.name: getattr(tokens, f.name).contiguous() for f in fields(LensTokens)}
        part = self._file(key).with_suffix(f".{uuid4().hex[:8]}.part")
        part.write_bytes(save(held))
        part.replace(self._file(key))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
