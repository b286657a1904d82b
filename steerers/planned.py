"""What steering plans: a patch, and the report that the answer carries; shared by all steerers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from models.patch import Clamp, Patch, Positions, Shift
from models.site import Site
from steerers.errors import BadStrength, NothingToSteer, PromptNeeded, TooStrong

Steered = Literal["last_and_generated", "all", "prompt", "generated"]
"""Which tokens of a row: the reference steers the last of the prompt and every one that follows."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How strong a change may be, as multiples of the stream's norm.

    Attributes:
        ratio: Beyond it a request is refused.
        warn: Beyond it the report warns: coherence suffers.
    """

    ratio: float = 10.0
    warn: float = 1.0


DEFAULT = Bounds()


@dataclass(frozen=True, kw_only=True, eq=False)
class Planned:
    """A patch for one row, and what the answer says about it, as JSON values.

    Attributes:
        stream_norms: Of every site that is changed, what the change is weighed against.
        reaches: How far a clamp can move a token, by the clamp's digest.
    """

    patch: Patch
    report: Mapping[str, Any]
    stream_norms: Mapping[str, float]
    reaches: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What of the request a plan may depend on.

    Attributes:
        prompt: The prompt's tokens, or None if they are not known yet.
        special: Ids of the tokenizer's marks.
        bounds: How strong a change may be.
    """

    prompt: tuple[int, ...] | None = None
    special: frozenset[int] = frozenset()
    bounds: Bounds = DEFAULT


def spans(positions: Steered, request: Request, *, skip_special: bool) -> tuple[Positions, ...]:
    """The tokens that are meant, as operations can say it; several stand side by side.

    Raises:
        PromptNeeded: Marks are to be skipped and the prompt is not known.
        NothingToSteer: No token is left.
    """
    if not skip_special or positions == "generated":
        return (positions,)
    if request.prompt is None:
        raise PromptNeeded("skip_special")
    text = tuple(i for i, token in enumerate(request.prompt) if token not in request.special)
    last = len(request.prompt) - 1
    meant = tuple(i for i in text if i == last) if positions == "last_and_generated" else text
    found: tuple[Positions, ...] = (meant,) if meant else ()
    if positions != "prompt":
        found = (*found, "generated")
    if not found:
        raise NothingToSteer("The prompt has no token that is text.")
    return found


def finite(strength: float | None, mode: str) -> float:
    """A strength that can be used; BadStrength if it is missing or not finite."""
    if strength is None:
        raise BadStrength(f"Mode {mode} needs a strength.")
    if not math.isfinite(strength):
        raise BadStrength(f"A strength of {strength} is no number.")
    return strength


def shifts(site: str, vector: Float[Tensor, " d"], where: Sequence[Positions]) -> tuple[Shift, ...]:
    """One vector at several spans of tokens that do not overlap."""
    return tuple(Shift(site=site, vector=vector, positions=span) for span in where)


def weighed(
    site: str, norm: float, stream_norm: float, bounds: Bounds
) -> tuple[dict[str, Any], list[str]]:
    """What the report says of a site, and its warnings.

    Raises:
        TooStrong: It is over the bound.
        BadStrength: Its norm is not finite.
    """
    if not math.isfinite(norm):
        raise BadStrength(f"The change at {site} is not finite.")
    ratio = norm / max(stream_norm, 1e-30)
    if ratio > bounds.ratio:
        raise TooStrong(site, ratio, bounds.ratio)
    told = {
        "site": site,
        "layer": Site.parse(site).block,
        "vector_norm": norm,
        "stream_norm": stream_norm,
        "ratio": ratio,
    }
    strong = f"The change at {site} is {ratio:.2g} times the stream's norm: the text may suffer."
    return told, [strong] if ratio > bounds.warn else []


def checked(site: str, vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """The vector to add there, in float32.

    Raises:
        BadStrength: It is not finite.
        NothingToSteer: It is zero.
    """
    dense = vector.detach().float()
    if not bool(torch.isfinite(dense).all()):
        raise BadStrength(f"The change at {site} is not finite.")
    if not bool(dense.any()):
        raise NothingToSteer(f"The change at {site} is zero.")
    return dense


def of_patch(
    method: Any, patch: Patch, stream_norms: Mapping[str, float], bounds: Bounds
) -> Planned:
    """The plan of a steerer that gives nothing but its patch: its settings are the report.

    Raises:
        TooStrong, BadStrength: A shift.
        TypeError: It clamps; only the steerer knows how far a clamp reaches, and says so itself.
    """
    shifted: dict[str, float] = {}
    for operation in patch:
        if isinstance(operation, Clamp):
            raise TypeError(f"{method.kind}: a steerer that clamps gives a Planned with reaches")
        if isinstance(operation, Shift):
            norm = float(operation.vector.norm())
            shifted[operation.site] = shifted.get(operation.site, 0.0) + norm
    told = [weighed(site, n, stream_norms[site], bounds) for site, n in sorted(shifted.items())]
    report = {
        **asdict(method),
        "sites": [site for site, _ in told],
        "warnings": [warning for _, some in told for warning in some],
        "patch": patch.digest,
    }
    return Planned(patch=patch, report=report, stream_norms=stream_norms)
