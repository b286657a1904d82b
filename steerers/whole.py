"""All steering of one row together: what several plans add up to, weighed token by token.

Plans know only themselves. Added up, sixteen changes of which each is small may be one large one,
two may leave nothing, and two clamps of one feature would move it twice. So shifts of a place are
summed, and the bound holds for the token that is moved the furthest.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.patch import Clamp, Operation, Patch, Positions, Shift
from steerers.errors import ClampedTwice, NothingToSteer
from steerers.planned import Bounds, Planned, weighed

_NOTHING = 1e-6
"""A sum that is so small beside its parts is what rounding left of zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Whole:
    """What one row carries.

    Attributes:
        sites: Per site how far the token that is moved the furthest is moved, as `weighed` says it.
    """

    patch: Patch
    sites: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]


def whole(parts: Sequence[Planned], tokens: int, bounds: Bounds) -> Whole:
    """The plans as one: one shift per site and positions, every clamp once, the rest as it is.

    Args:
        parts: In any order: sums are taken in the order of digests.
        tokens: Of the row's prompt.
        bounds: How strong the sum may be.

    Raises:
        NothingToSteer: Shifts of some token cancel each other.
        ClampedTwice: Two clamps hold one feature at one token, and differ.
        TooStrong, BadStrength: The sum at some token.
    """
    operations: list[Operation] = []
    sites, warnings = [], []
    everything = Patch(tuple(operation for part in parts for operation in part.patch))
    reaches = {digest: reach for part in parts for digest, reach in part.reaches.items()}
    operations += [o for o in everything if not isinstance(o, Shift | Clamp)]
    for site in sorted({o.site for o in everything if isinstance(o, Shift | Clamp)}):
        shifts = [o for o in everything if isinstance(o, Shift) and o.site == site]
        clamps = list(_once([o for o in everything if isinstance(o, Clamp) and o.site == site]))
        norm = 0.0
        for shifted, clamped in _tokens(shifts, clamps, tokens):
            _check_clamps(clamped, site)
            reach = sum(reaches[clamp.digest] for clamp in clamped)
            norm = max(norm, float(_sum(shifted, site).norm()) + reach if shifted else reach)
        # Of several opinions the strictest: a prompt of its own may have a longer stream.
        stream_norm = min(p.stream_norms[site] for p in parts if site in p.stream_norms)
        told, warned = weighed(site, norm, stream_norm, bounds)
        sites.append(told)
        warnings += warned
        operations += [*_summed(shifts, site), *clamps]
    return Whole(patch=Patch(tuple(operations)), sites=tuple(sites), warnings=tuple(warnings))


def _summed(shifts: Sequence[Shift], site: str) -> Iterator[Shift]:
    by_positions: dict[Positions, list[Shift]] = defaultdict(list)
    for shift in shifts:
        by_positions[shift.positions].append(shift)
    for positions, some in by_positions.items():
        one = len(some) == 1
        vector = some[0].vector if one else _sum(some, site).float()
        yield Shift(site=site, vector=vector, positions=positions)


def _sum(shifts: Sequence[Shift], site: str) -> Tensor:
    """In float64, in the order that they have in a patch."""
    vectors = torch.stack([shift.vector.detach().double() for shift in shifts])
    total = vectors.sum(0)
    if float(total.norm()) <= _NOTHING * float(vectors.norm(dim=1).sum()):
        raise NothingToSteer(f"The changes at {site} cancel each other.")
    return total


def _once(clamps: Sequence[Clamp]) -> Iterator[Clamp]:
    seen: set[str] = set()
    for clamp in clamps:
        if clamp.digest not in seen:
            yield clamp
        seen.add(clamp.digest)


def _check_clamps(clamps: Sequence[Clamp], site: str) -> None:
    held = {(clamp.encoder.cpu().numpy().tobytes(), clamp.encoder_bias) for clamp in clamps}
    if len(held) < len(clamps):
        raise ClampedTwice(site)


def _tokens(
    shifts: Sequence[Shift], clamps: Sequence[Clamp], prompt: int
) -> Iterator[tuple[list[Shift], list[Clamp]]]:
    """What meets at a token: once for every different company that tokens of the row are in."""
    operations = [*shifts, *clamps]
    places = [_places(operation.positions, prompt) for operation in operations]
    met: set[tuple[int, ...]] = set()
    for token in range(prompt + 1):
        here = tuple(i for i, meant in enumerate(places) if token in meant)
        if here and here not in met:
            met.add(here)
            found = [operations[i] for i in here]
            yield (
                [o for o in found if isinstance(o, Shift)],
                [o for o in found if isinstance(o, Clamp)],
            )


def _places(positions: Positions, prompt: int) -> range | frozenset[int]:
    """Tokens of the prompt; the one behind it stands for all that are written."""
    match positions:
        case "prompt":
            return range(prompt)
        case "generated":
            return range(prompt, prompt + 1)
        case "last_and_generated":
            return range(max(prompt - 1, 0), prompt + 1)
        case "last":
            return range(max(prompt - 1, 0), prompt)
        case tuple():
            return frozenset(positions)
        case _:
            return range(prompt + 1)
