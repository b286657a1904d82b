"""A delta: thin factors and one header string; its bytes are its identity."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.errors import BadDelta
from models.errors import WrongBase
from models.hosted import HostedModel
from models.patch import LowRank, Patch
from models.tensor_file import pack, unpack

FORMAT = 1
_NAMES = ("left", "right", "keys", "solved", "values")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a delta file may be; beyond it, it is refused."""

    file_bytes: int = 64 * 1024 * 1024
    header_bytes: int = 1024 * 1024
    rank: int = 256
    norm: float = 1e4


@dataclass(frozen=True)
class Factors:
    """One site's change and what it was solved from.

    Attributes:
        left: (out, r); right: (r, in).
        keys: (m, in) where the change is exact.
        solved: (m, in) C^-1 k, from which several edits are solved jointly.
        values: (m, out) the wanted changes of the output.
    """

    left: Float[Tensor, "out r"]
    right: Float[Tensor, "r inner"]
    keys: Float[Tensor, "m inner"]
    solved: Float[Tensor, "m inner"]
    values: Float[Tensor, "m out"]


@dataclass(frozen=True, eq=False)
class Delta:
    """One immutable version of an edit.

    Attributes:
        header: JSON values: `base`, `method`, `mode`, `fact`, `settings`, `fit`, `moment`, ...
        factors: By canonical site.
    """

    header: Mapping[str, Any]
    factors: Mapping[str, Factors]

    @cached_property
    def data(self) -> bytes:
        """The safetensors file; the same bytes for the same delta, in any process."""
        tensors = {
            f"{site}.{name}": getattr(self.factors[site], name)
            for site in sorted(self.factors)
            for name in _NAMES
        }
        return pack(tensors, self.header, FORMAT)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file: the version's identity."""
        return hashlib.sha256(self.data).hexdigest()

    @classmethod
    def read(cls, data: bytes, limits: Limits | None = None) -> "Delta":
        """A delta from its file, checked.

        Raises:
            BadDelta: Not a safetensors file of ours, too large, not finite, or its factors do not
                give its values at its keys to 1e-4.
        """
        limits = limits or Limits()
        try:
            header, tensors = unpack(data, FORMAT, limits.file_bytes, limits.header_bytes)
        except ValueError as broken:
            raise BadDelta(str(broken)) from broken
        delta = cls(header, _grouped(tensors))
        for site, factors in delta.factors.items():
            _check(site, factors, limits)
        return delta

    def check_base(self, hosted: HostedModel, name: str) -> None:
        """WrongBase unless it was made for the hosted weights."""
        base = self.header.get("base", {}).get("fingerprint", "")
        if base != hosted.fingerprint:
            raise WrongBase(name, base, hosted.name, hosted.fingerprint)

    def patch(self, strength: float = 1.0) -> Patch:
        """The change as a patch, by itself."""
        return Patch(
            tuple(
                LowRank(site=site, left=f.left * strength, right=f.right)
                for site, f in sorted(self.factors.items())
            )
        )

    def with_header(self, **changes: Any) -> "Delta":
        """The same factors under a changed header."""
        return replace(self, header={**self.header, **changes})


def _grouped(tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
    sites = {name.rpartition(".")[0] for name in tensors}
    wanted = {f"{site}.{name}" for site in sites for name in _NAMES}
    if wanted != tensors.keys() or not sites:
        raise BadDelta(f"Its tensors are {sorted(tensors)[:4]}..., not left, right, keys, ...")
    return {s: Factors(*(tensors[f"{s}.{n}"].float() for n in _NAMES)) for s in sorted(sites)}


def _check(site: str, f: Factors, limits: Limits) -> None:
    m = len(f.keys)
    shapes = (
        f.left.ndim == f.right.ndim == f.keys.ndim == f.solved.ndim == f.values.ndim == 2
        and f.left.shape[1] == f.right.shape[0]
        and f.keys.shape == f.solved.shape == (m, f.right.shape[1])
        and f.values.shape == (m, f.left.shape[0])
    )
    if not shapes:
        raise BadDelta(f"The shapes at {site} do not fit together.")
    if not all(bool(torch.isfinite(getattr(f, n)).all()) for n in _NAMES):
        raise BadDelta(f"The factors at {site} are not finite.")
    if f.left.shape[1] > limits.rank:
        raise BadDelta(f"Rank {f.left.shape[1]} at {site}; {limits.rank} are allowed.")
    norm = float(torch.linalg.matrix_norm(f.left.double() @ f.right.double()))
    if norm > limits.norm:
        raise BadDelta(f"The change at {site} has norm {norm:.3g}; {limits.norm:.3g} is allowed.")
    given = f.keys.double() @ f.right.double().mT @ f.left.double().mT
    off = float((given - f.values.double()).norm() / f.values.double().norm().clamp_min(1e-30))
    if m and off > 1e-4:
        raise BadDelta(f"The factors at {site} miss their values by {off:.2g}.")
