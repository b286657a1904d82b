"""A model that is hosted: read-only weights, a family, and rows that carry patches."""

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.applying import Hooks, Run, install, running, seeing
from models.errors import BadPatch, UnknownSite
from models.fingerprint import canonical
from models.patch import Clamp, Detour, Exit, LowRank, Operation, Patch, Shift
from models.plan import Plan, pack
from models.site import Site
from models.text_tower import TextTower

if TYPE_CHECKING:
    from models.family import Family

_NUMBERS = itertools.count(1)
_PLANS_KEPT = 64


@dataclass(kw_only=True, eq=False)
class HostedModel:
    """One hosted model; made by `models.loading.load`.

    Attributes:
        modules: The pipeline's parts by attribute (`text_encoder`, `unet`, `vae`, ...).
        parts: Whatever else the family needs (the scheduler's configuration, ...).
        text_towers: CLIP text encoders by attribute.
        clip: The full CLIP whose text tower is the pipeline's, or None.
        towers: Residual towers by the name that stream sites use.
        linears: Linear layers by canonical path.
        defaults: What the model's folder or configuration states (`edit_block`, ...).
    """

    name: str
    family: "Family"
    fingerprint: str
    path: Path
    dtype: torch.dtype
    device: torch.device
    modules: Mapping[str, nn.Module]
    parts: Mapping[str, Any] = field(default_factory=dict)
    text_towers: Mapping[str, TextTower] = field(default_factory=dict)
    clip: nn.Module | None = None
    towers: Mapping[str, nn.ModuleList] = field(default_factory=dict)
    linears: Mapping[str, nn.Module] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_NUMBERS))
    hooks: Hooks = field(init=False)
    _plans: OrderedDict[tuple[str, ...], Plan] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        for module in (*self.modules.values(), *([self.clip] if self.clip else [])):
            module.requires_grad_(False).eval()
        self.hooks = install(self.number, self.linears, self.towers)

    @contextmanager
    def planned(
        self,
        patches: Sequence[Patch],
        rows: Sequence[int] | None = None,
        *,
        positions: Sequence[Mapping[str, tuple[int, ...]]] = (),
        tokens: int | None = None,
    ) -> Iterator[Run]:
        """Forwards inside this block change each row as its patch says, and nothing else.

        Args:
            patches: One per batch row, or the distinct ones that `rows` points into.
            rows: Per batch row an index into `patches`, -1 for a plain row.
            positions: Per row, the columns that named positions mean.
            tokens: How many tokens each row has, if every LowRank must change exactly these.

        Raises:
            PatchNotApplied: At the end of the block, naming the rows that were not changed as
                planned; what the forward returned is right for all other rows.
        """
        plain = Patch()
        of_row = patches if rows is None else [patches[i] if i >= 0 else plain for i in rows]
        for patch in set(of_row):
            self.check(patch)
        with running(self._plan(tuple(of_row), positions), self.number, tokens) as run:
            yield run

    def _plan(
        self, of_row: tuple[Patch, ...], positions: Sequence[Mapping[str, tuple[int, ...]]]
    ) -> Plan:
        grads = any(isinstance(o, Shift) and o.vector.requires_grad for p in of_row for o in p)
        if positions or grads:
            return pack(of_row, positions, self.device)
        key = tuple(p.digest for p in of_row)
        if key not in self._plans:
            self._plans[key] = pack(of_row, (), self.device)
            while len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        return self._plans[key]

    @contextmanager
    def captured(self, *sites: str) -> Iterator[dict[str, list[Tensor]]]:
        """Collect, per site, one tensor for each forward inside the block.

        Stream sites give the stream, linear sites the input of the layer, `<linear site>:out` its
        output (changes included).
        """
        for site in sites:
            self._known(site.removesuffix(":out"))
        with seeing(sites, self.number) as seen:
            yield seen

    def check(self, patch: Patch) -> None:
        """UnknownSite or BadPatch, before anything runs, if the patch does not fit this model."""
        for operation in patch:
            self._check(operation)

    def _check(self, operation: Operation) -> None:
        match operation:
            case LowRank(site=site, left=left, right=right):
                weight = self._known(site)
                if (left.shape[0], right.shape[1]) != tuple(weight.shape):
                    raise BadPatch(
                        f"A change of {left.shape[0]}x{right.shape[1]} does not fit {site}, "
                        f"which is {weight.shape[0]}x{weight.shape[1]}."
                    )
            case Shift(site=site) | Clamp(site=site):
                self._known(site)
            case Exit(tower=tower, after=last) | Detour(tower=tower, source=last):
                blocks = self.towers.get(tower)
                if blocks is None or (last or 0) >= len(blocks):
                    raise UnknownSite(f"{tower}.block.{last}", self.name)

    def _known(self, path: str) -> Tensor:
        site = Site.parse(path)
        if site.kind == "linear" and path in self.linears:
            weight = self.linears[path].weight
            assert isinstance(weight, Tensor)  # noqa: S101 - a linear layer has one
            return weight
        blocks = self.towers.get(site.tower)
        if site.kind == "linear" or blocks is None or (site.block or 0) >= len(blocks):
            raise UnknownSite(path, self.name)
        return next(blocks.parameters())

    def weights_digest(self) -> str:
        """SHA-256 of all hosted parameters now: equal before and after anything we do."""
        found = hashlib.sha256()
        for part in sorted(self.modules):
            for name, tensor in sorted(canonical(self.modules[part].state_dict()).items()):
                found.update(name.encode() + tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def close(self) -> None:
        """Take the hooks out; the model can no longer be patched."""
        self.hooks.remove()
