"""What a request's `steering` becomes: one patch, and a report of what was chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Steered:
    """The plan for one prompt.

    Attributes:
        reports: One per entry of the order.
    """

    patch: Patch = field(default_factory=Patch)
    reports: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


def reports_of(plans: Sequence[Steered]) -> tuple[Mapping[str, Any], ...]:
    """The reports of all prompts: once if they agree, else each with the number of its prompt."""
    if all(plan.reports == plans[0].reports for plan in plans):
        return plans[0].reports
    return tuple(
        {"prompt": place, **report} for place, plan in enumerate(plans) for report in plan.reports
    )
