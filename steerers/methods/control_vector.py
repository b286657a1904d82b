"""Add a direction that was learned from two lists of texts, or that the caller brings.

The supervised baseline of SAE steering (contrastive activation addition; AxBench's DiffMean).
Covered: every tower of every family whose stream a direction fits. A model that draws reads its
prompt once, so there only `positions: all` means anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import MaxLen
from jaxtyping import Float
from torch import Tensor

from models.hosted import HostedModel
from models.language import Language
from models.method import Method
from models.patch import Patch
from steerers.control_vectors import Vectors
from steerers.errors import ModeNotPossible, UnknownDictionary
from steerers.planned import Planned, Request, Steered, checked, finite, shifts, spans, weighed


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """One version of a direction, and how long the streams are that it is added to."""

    vectors: Vectors
    stream_norms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ControlVector(Method):
    """One direction for one row."""

    vector: Annotated[str, MaxLen(200)]
    """Its name, as the caller's directions are named."""
    strength: float = 1.0
    unit: Literal["raw", "unit", "stream"] = "raw"
    """What the strength multiplies: the vector, the vector at length 1, or at the stream's norm."""
    sites: Annotated[tuple[str, ...], MaxLen(1000)] = ()
    """Where it is added; empty is everywhere it has a vector for."""
    positions: Steered = "last_and_generated"
    skip_special: bool = False
    """Leave the tokenizer's marks in the prompt alone."""
    kind: Literal["control_vector"] = "control_vector"

    def plan(
        self,
        hosted: HostedModel,
        directions: Mapping[str, Direction] | None = None,
        request: Request | None = None,
    ) -> Planned:
        """The patch, and how strong it is.

        Args:
            hosted: The model; nothing runs on it.
            directions: What there is, by the name that `vector` uses.
            request: What the plan may depend on: the prompt's tokens, marks, bounds.

        Raises:
            MethodNotApplicable, UnknownSite, BadPatch: It does not fit the model.
            UnknownDictionary: There is no such direction, or it has no vector for a site.
            BadStrength, TooStrong, NothingToSteer, PromptNeeded, ModeNotPossible: The change.
        """
        hosted.family.check_method(self.kind)
        there, request = directions or {}, request or Request()
        if self.vector not in there:
            raise UnknownDictionary("direction", self.vector, ", ".join(there))
        if not isinstance(hosted.family, Language) and self.positions != "all":
            reason = "a model that draws generates no tokens; use positions all."
            raise ModeNotPossible(f"positions {self.positions}", self.vector, reason)
        direction = there[self.vector]
        where = spans(self.positions, request, skip_special=self.skip_special)
        operations, sites, warnings = [], [], []
        for site in self.sites or tuple(direction.vectors.vectors):
            vector = checked(site, self._scaled(direction, site))
            norm, stream_norm = float(vector.norm()), direction.stream_norms[site]
            told, warned = weighed(site, norm, stream_norm, request.bounds)
            operations += shifts(site, vector, where)
            sites.append(told)
            warnings += warned
        patch = Patch(tuple(operations))
        hosted.check(patch)
        return Planned(
            patch=patch,
            report=self._report(direction, sites, warnings, patch),
            stream_norms={told["site"]: told["stream_norm"] for told in sites},
        )

    def _scaled(self, direction: Direction, site: str) -> Float[Tensor, " d"]:
        known = direction.vectors.vectors
        if site not in known:
            raise UnknownDictionary(f"vector of {self.vector} at", site, ", ".join(known))
        vector, strength = known[site], finite(self.strength, self.unit)
        if self.unit == "raw":
            return strength * vector
        length = direction.stream_norms[site] if self.unit == "stream" else 1.0
        return (strength * length / max(float(vector.norm()), 1e-30)) * vector

    def _report(
        self,
        direction: Direction,
        sites: list[dict[str, Any]],
        warnings: list[str],
        patch: Patch,
    ) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "vector": self.vector,
            "vector_digest": direction.vectors.digest,
            "strength": self.strength,
            "unit": self.unit,
            "positions": self.positions,
            "skip_special": self.skip_special,
            "sites": sites,
            "warnings": warnings,
            "patch": patch.digest,
        }


METHOD = ControlVector
EXAMPLE = ControlVector(vector="toy", positions="all")
