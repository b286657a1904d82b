"""Write late states of visual tokens back into an early layer (Nikankin et al. 2025, section 6).

A clean pass, and one whose residual stream behind the target layers is overwritten, at the visual
tokens, with what the clean pass had behind the source layers. Covered: every vision-language
family; any tokens of the prompt by number, for the control in words. Not covered: tokens that are
generated: the prompt's patched keys and values stay with them, and nothing else is patched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MaxLen

from models.decoder import TOWER
from models.hosted import HostedModel
from models.method import Method
from models.patch import Detour, Patch
from steerers.errors import BadBackPatch
from steerers.planned import Planned

Pair = tuple[int, int]
"""Source and target."""
MOST_LOOPS = 10
"""As many as the paper tried."""
WIDEST = 15


@dataclass(frozen=True, kw_only=True)
class BackPatch(Method):
    """One plan for one row: a source, a target and a window, or pairs of sources and targets."""

    source: Annotated[int, Ge(0)] | None = None
    """The decoder layer, counted from 0, behind which the clean stream is read."""
    target: Annotated[int, Ge(0)] | None = None
    """The earlier layer behind which it is written."""
    window: Annotated[int, Ge(1), Le(WIDEST)] = 1
    """Odd: so many neighbouring pairs around source and target; pairs outside are dropped."""
    pairs: Annotated[tuple[Pair, ...], MaxLen(256)] = ()
    """[source, target] of all that is written, instead of `source`, `target` and `window`."""
    positions: Literal["visual", "reference"] | Annotated[tuple[int, ...], MaxLen(65536)] = "visual"
    """All image placeholders, those that the paper's own code patches, or tokens of the prompt."""
    loops: Annotated[int, Ge(1), Le(MOST_LOOPS)] = 1
    """How many passes are patched: each writes what the one before it had."""
    kind: Literal["back_patch"] = "back_patch"

    def plan(self, hosted: HostedModel) -> Planned:
        """The patch, and the plan with what was dropped at the model's edges.

        Raises:
            MethodNotApplicable: The model has no visual tokens.
            BadBackPatch: Not 0 <= target < source < layers, an even window, a target twice, tokens
                that do not ascend, or nothing that is complete.
        """
        hosted.family.check_method(self.kind)
        layers = len(hosted.towers[TOWER])
        detours = tuple(self._detours(layers))
        written = [pair for detour in detours for pair in detour.pairs(layers)]
        targets = [target for _, target in written]
        if len(targets) > len(set(targets)):
            raise BadBackPatch("Two sources are written behind one layer.", "pairs")
        patch = Patch(detours)
        hosted.check(patch)
        return Planned(patch=patch, report=self._report(written, patch), stream_norms={})

    def _detours(self, layers: int) -> list[Detour]:
        if self.window % 2 == 0:
            raise BadBackPatch(f"A window is odd, not {self.window}.", "window")
        if not self.positions or _falls(self.positions):
            raise BadBackPatch("Tokens count from 0 and ascend.", "positions")
        return [
            Detour(
                tower=TOWER,
                source=source,
                target=target,
                window=self.window,
                positions=self.positions,
                loops=self.loops,
            )
            for source, target in self._pairs(layers)
        ]

    def _pairs(self, layers: int) -> tuple[Pair, ...]:
        if self.pairs and (self.source is not None or self.target is not None or self.window > 1):
            raise BadBackPatch("Pairs go without source, target and window.", "pairs")
        if self.pairs:
            asked = self.pairs
        elif self.source is None or self.target is None:
            missing = "source" if self.source is None else "target"
            raise BadBackPatch(f"A plan without a {missing} says too little.", missing)
        else:
            asked = ((self.source, self.target),)
        for source, target in asked:
            if not 0 <= target < source < layers:
                where = f"from layer {source} back to {target}"
                key = "pairs" if self.pairs else "source"
                raise BadBackPatch(f"Nothing leads {where} of {layers} layers.", key)
        return asked

    def _report(self, written: list[Pair], patch: Patch) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "source": self.source,
            "target": self.target,
            "window": self.window,
            "pairs": [list(pair) for pair in sorted(written, key=lambda p: p[1])],
            "positions": list(self.positions)
            if isinstance(self.positions, tuple)
            else self.positions,
            "loops": self.loops,
            "warnings": [],
            "patch": patch.digest,
        }


def extra_token_layers(
    patch: Patch, layers: int, named: Mapping[str, tuple[int, ...]], stop: int | None = None
) -> int:
    """What a row's detours cost beyond its plain prompt, in tokens times layers.

    Args:
        patch: The row's.
        layers: Of the decoder.
        named: What `visual` and `reference` mean in its prompt.
        stop: One past the last token that a run ahead needs; None for one past the last written.
    """
    detours = [o for o in patch.placed(named) if isinstance(o, Detour)]
    if not detours:
        return 0
    pairs = [pair for detour in detours for pair in detour.pairs(layers)]
    columns = detours[0].positions
    end = columns[-1] + 1 if isinstance(columns, tuple) else 0
    span = max(s for s, _ in pairs) - min(t for _, t in pairs)
    return detours[0].loops * max(stop or 0, end) * span


def _falls(positions: object) -> bool:
    if not isinstance(positions, tuple):
        return False
    return list(positions) != sorted(set(positions)) or positions[0] < 0


METHOD = BackPatch
EXAMPLE = BackPatch(source=2, target=0)
