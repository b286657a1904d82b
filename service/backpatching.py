"""Back-patching in a request: the plan that presets keep, and what it comes to in one prompt.

The steerer (`steerers.methods.back_patch`) plans for a model; which columns are visual is known
when the prompt was read, so here the plan is held against it and the answer's report completed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from models.patch import Detour, Patch
from models.sight import Sight, spans_of
from service.errors import BackPatchTwice
from service.orders import SteeringOrder
from service.steering import Steered, placed
from steerers.errors import BadBackPatch
from steerers.methods.back_patch import BackPatch, extra_token_layers

KIND, CALIBRATION = "back_patch", "calibration"
_DETOUR = ":detour"
"""What follows the place in the counts of what a detour wrote."""


def is_backpatch(order: SteeringOrder) -> bool:
    """Whether the entry is a plan of back-patching."""
    return isinstance(order.method, BackPatch)


def check_once(steering: Sequence[SteeringOrder]) -> None:
    """BackPatchTwice if there are two plans, however they were named."""
    plans = [order for order in steering if is_backpatch(order)]
    if len(plans) > 1:
        raise BackPatchTwice(_called(plans[0]), _called(plans[-1]), plans[-1].place)


def _called(order: SteeringOrder) -> str:
    """By the preset's name if it has one: two of them may stand in one key."""
    return order.place if order.preset is None else f"{order.preset.name}@{order.preset.version}"


def kept(plan: BackPatch, calibration: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a preset keeps of a plan, and of what it was found to gain."""
    defaults = {f.name: f.default for f in fields(plan)}
    told = {k: v for k, v in asdict(plan).items() if v != defaults[k]}
    found = {"kind": KIND, **{k: _json(v) for k, v in told.items()}}
    return found if calibration is None else {**found, CALIBRATION: dict(calibration)}


def _json(value: Any) -> Any:
    return [_json(one) for one in value] if isinstance(value, tuple) else value


def told_apart(
    content: Mapping[str, Any],
) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """Of a preset's content the entry, and what it was found to gain, if that is known."""
    entry = dict(content)
    calibration = entry.pop(CALIBRATION, None) if entry.get("kind") == KIND else None
    return entry, calibration


def in_prompt(
    steered: Steered,
    steering: Sequence[SteeringOrder],
    tokens: int,
    sight: Sight | None,
    layers: int,
) -> Steered:
    """The plan held against what the row reads, its report completed.

    Args:
        steered: The plan of all of `steering`.
        steering: The order's entries.
        tokens: Of the prompt.
        sight: Its pictures.
        layers: Of the decoder.

    Raises:
        BadBackPatch: There is no visual token, or a token is named that the prompt does not have.
    """
    for entry in filter(is_backpatch, steering):
        with placed(entry):
            columns = _columns(entry.method, tokens, sight)
        more = _told(steered.patch, columns, sight, layers)
        reports = [{**r, **more} if r["kind"] == KIND else r for r in steered.reports]
        return replace(steered, reports=tuple(reports))
    return steered


def _columns(plan: BackPatch, tokens: int, sight: Sight | None) -> tuple[int, ...]:
    if isinstance(plan.positions, tuple):
        if plan.positions[-1] >= tokens:
            problem = f"Token {plan.positions[-1]} is named, and the prompt has {tokens}."
            raise BadBackPatch(problem, "positions", "Tokens of the prompt count from 0.")
        return plan.positions
    columns = () if sight is None else sight.named[plan.positions]
    if not columns:
        raise BadBackPatch(
            "The prompt shows no picture: it has no visual token.",
            "positions",
            "Show one, or name tokens of the prompt as `positions`.",
        )
    return columns


def _told(
    patch: Patch, columns: tuple[int, ...], sight: Sight | None, layers: int
) -> dict[str, Any]:
    named = {} if sight is None else sight.named
    detours = Patch(tuple(o for o in patch if isinstance(o, Detour)))
    joint = () if sight is None else sight.joint
    stop = max((end for first, end in joint if first <= columns[-1]), default=0)
    return {
        "columns": [list(span) for span in spans_of(columns)],
        "tokens": len(columns),
        "visual_tokens": 0 if sight is None else len(sight.visual),
        "pictures": 0 if sight is None else sight.pictures,
        "extra_token_layers": extra_token_layers(detours, layers, named, stop),
    }


def is_detour(place: str) -> bool:
    """Whether a count is of what was written back."""
    return place.endswith(_DETOUR)


def backpatched(changed: Mapping[str, int]) -> int:
    """Tokens that were written back, from the counts of what was changed; once for each layer."""
    return sum(tokens for place, tokens in changed.items() if is_detour(place))
