"""Edits that one request names are solved together: exact at every stored key, in any order."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editors.delta import Delta, Factors
from editors.errors import EditsConflict, MixedLayers
from editors.rank_one import joint
from models.patch import LowRank, Patch

WARN_VIF, REFUSE_VIF, REFUSE_STRAIN = 4.0, 100.0, 25.0


@dataclass(frozen=True, kw_only=True)
class Named:
    """An edit of a request: what it is called, its delta, how strongly it acts."""

    name: str
    delta: Delta
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The patch of a request, and how much its edits are in each other's way.

    Attributes:
        patch: All edits in one LowRank per site.
        exact: False if something without keys (an imported LoRA) takes part.
        vif: Largest variance inflation G_ii (G^-1)_ii; 1 where nothing overlaps.
        strain: The joint update's mean square over the corpus against that of the single ones.
        warnings: What a caller should know.
    """

    patch: Patch
    exact: bool = True
    vif: float = 1.0
    strain: float = 1.0
    warnings: tuple[str, ...] = ()


def compose(edits: Sequence[Named]) -> Composition:
    """All edits of one row as one patch.

    Raises:
        MixedLayers: Keyed edits of several blocks of one encoder.
        EditsConflict: Nearly parallel keys with different values.
    """
    keyed: dict[str, list[tuple[Named, Factors]]] = defaultdict(list)
    loose = Patch()
    for edit in sorted(edits, key=lambda e: (e.delta.digest, e.strength)):
        for site, factors in edit.delta.factors.items():
            if len(factors.keys):
                keyed[site].append((edit, factors))
            else:
                loose |= Patch(
                    (LowRank(site=site, left=factors.left * edit.strength, right=factors.right),)
                )
    _one_block({site: [e.name for e, _ in entries] for site, entries in keyed.items()})
    solved = [_solve(site, entries) for site, entries in sorted(keyed.items())]
    patch = loose
    for part in solved:
        patch |= part.patch
    vif = max((p.vif for p in solved), default=1.0)
    warnings = (f"The edits share their keys (VIF {vif:.1f}).",) if vif > WARN_VIF else ()
    strain = max((p.strain for p in solved), default=1.0)
    return Composition(patch=patch, exact=not loose, vif=vif, strain=strain, warnings=warnings)


def _one_block(named: Mapping[str, Sequence[str]]) -> None:
    encoders = {site.partition(".")[0] for site in named}
    if len(encoders) != len(named):
        raise MixedLayers("; ".join(f"{', '.join(n)} at {s}" for s, n in sorted(named.items())))


def _solve(site: str, entries: Sequence[tuple[Named, Factors]]) -> Composition:
    if len(entries) == 1:
        edit, f = entries[0]
        whole = LowRank(site=site, left=f.left * edit.strength, right=f.right)
        return Composition(patch=Patch((whole,)))
    keys = torch.cat([f.keys for _, f in entries]).double()
    solved = torch.cat([f.solved for _, f in entries]).double()
    values = torch.cat([f.values * e.strength for e, f in entries]).double()
    names = [e.name for e, f in entries for _ in range(len(f.keys))]
    owner = torch.tensor([i for i, (_, f) in enumerate(entries) for _ in range(len(f.keys))])
    vif, strain = _measure(keys, solved, values, names, owner)
    left, right = joint(keys, solved, values)
    return Composition(
        patch=Patch((LowRank(site=site, left=left.float(), right=right.float()),)),
        vif=vif,
        strain=strain,
    )


def _measure(
    keys: Float[Tensor, "m inner"],
    solved: Float[Tensor, "m inner"],
    values: Float[Tensor, "m out"],
    names: Sequence[str],
    owner: Tensor,
) -> tuple[float, float]:
    gram = solved @ keys.mT
    rho = overlap(gram)
    other = owner[:, None] != owner[None, :]
    worst = int((rho.abs() * other).argmax())
    i, j = divmod(worst, len(gram))
    pair = f"{names[i]} and {names[j]}"
    inverse = torch.linalg.pinv(gram)
    # What one edit's own keys share is its own affair: inflation is measured against other edits.
    alone = torch.linalg.pinv(gram * ~other)
    vif = float((inverse.diagonal() / alone.diagonal().clamp_min(1e-300)).max())
    strain = float(_energy(values, inverse) / _energy(values, alone).clamp_min(1e-300))
    if vif > REFUSE_VIF or strain > REFUSE_STRAIN or not vif > 0:
        raise EditsConflict(
            pair, f"key overlap {float(rho[i, j]):.3f}, VIF {vif:.0f}, strain {strain:.0f}"
        )
    return vif, strain


def _energy(values: Float[Tensor, "m out"], inverse: Float[Tensor, "m m"]) -> Tensor:
    return ((inverse @ values) * values).sum()


def overlap(gram: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """rho_ij = G_ij / sqrt(G_ii G_jj): 1 for parallel keys."""
    scale = gram.diagonal().clamp_min(1e-300).rsqrt()
    return gram * scale[:, None] * scale[None, :]
