"""A model that is hosted: read-only weights, a family, and rows that carry patches."""

import hashlib
import itertools
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.applying import (
    Hooks,
    Run,
    in_force,
    install,
    running,
    running_ahead,
    seeing,
    tallying,
    untallying,
)
from models.errors import BadPatch, UnknownSite, WrongBase
from models.fingerprint import bytes_of, canonical
from models.patch import Clamp, Detour, Exit, LowRank, Operation, Patch, Shift
from models.plan import Named, Plan, pack
from models.site import Site
from models.text_tower import TextTower

if TYPE_CHECKING:
    import models.family

_NUMBERS = itertools.count(1)
_PLANS_KEPT = 64


@dataclass(kw_only=True, eq=False)
class HostedModel:
    """One hosted model; made by `models.loading.load`.

    Attributes:
        modules: The pipeline's parts by attribute (`text_encoder`, `unet`, `vae`, ...).
        parts: Whatever else the family needs (the schedulers' templates, ...).
        text_towers: CLIP text encoders by attribute.
        clip: The full CLIP whose text tower is the pipeline's, for image targets; or None.
        towers: Residual towers by the name that stream sites use.
        linears: Linear layers by canonical path.
        defaults: What the folder's `tiller.json` states (`edit_block`, `steps`, ...).
        reread: Computes the fingerprint from the files once more.
    """

    name: str
    family: "models.family.Family"
    fingerprint: str
    path: Path
    dtype: torch.dtype
    device: torch.device
    modules: Mapping[str, Any]
    parts: Mapping[str, Any] = field(default_factory=dict)
    text_towers: Mapping[str, TextTower] = field(default_factory=dict)
    clip: Any = None
    towers: Mapping[str, nn.ModuleList] = field(default_factory=dict)
    linears: Mapping[str, nn.Module] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reread: Callable[[], str] | None = None
    number: int = field(default_factory=lambda: next(_NUMBERS), init=False)
    hooks: Hooks = field(init=False)
    _plans: OrderedDict[tuple[str, ...], Plan] = field(default_factory=OrderedDict, init=False)
    _latest: tuple[tuple[Patch, ...], Plan] | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        for module in (*self.modules.values(), *([self.clip] if self.clip is not None else [])):
            module.requires_grad_(False).eval()
        self.hooks = install(self.number, self.linears, self.towers)

    @contextmanager
    def planned(
        self,
        patches: Sequence[Patch],
        rows: Sequence[int] | None = None,
        positions: Sequence[Named] = (),
        *,
        tokens: int | None = None,
    ) -> Iterator[Run]:
        """Forwards inside this block change each row as its patch says, and nothing else.

        Args:
            patches: One per batch row, or the distinct ones that `rows` points into.
            rows: Per batch row an index into `patches`, -1 for a plain row.
            positions: Per row, the columns that named positions mean.
            tokens: How many tokens each row has, if all of them must be reached.

        Raises:
            UnknownSite: A patch names a place that the model does not have.
            BadPatch: A patch does not fit, or nobody said what its named positions mean.
            PatchNotApplied: At the end of the block, naming the rows that were not changed as
                planned; what the forward returned is right for all other rows.
        """
        plain = Patch()
        of_row = patches if rows is None else [patches[i] if i >= 0 else plain for i in rows]
        with running(self._plan(tuple(of_row), positions), self.number, tokens) as run:
            yield run

    def _plan(self, of_row: tuple[Patch, ...], positions: Sequence[Named]) -> Plan:
        # A decoding step brings the same patches as the one before it, object by object.
        if (latest := self._latest) is not None and _same(latest[0], of_row):
            return latest[1]
        fitted = any(_fitted(o) for patch in of_row for o in patch)
        key = tuple(patch.digest for patch in of_row)
        with self._lock:
            # What was packed before was checked before: a decoding step costs no more than this.
            if not fitted and (known := self._plans.get(key)) is not None:
                self._plans.move_to_end(key)
                self._latest = of_row, known
                return known
        for patch in set(of_row):
            self.check(patch)
        _all_named(of_row, positions)
        blocks = {tower: len(found) for tower, found in self.towers.items()}
        plan = pack(of_row, blocks, positions, self.device)
        if fitted or any(_named(o) for patch in of_row for o in patch):
            return plan
        with self._lock:
            self._plans[key] = plan
            self._latest = of_row, plan
            while len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        return plan

    @contextmanager
    def captured(self, *sites: str) -> Iterator[dict[str, list[Tensor]]]:
        """Collect, per site, one tensor for each forward inside the block.

        Stream sites give the stream, linear sites the input of the layer, `<linear site>:out` its
        output (changes included).

        Raises:
            UnknownSite: The model has no such place.
        """
        for site in sites:
            self._width(site.removesuffix(":out"))
        with seeing(sites, self.number) as seen:
            yield seen

    @contextmanager
    def tallied(self) -> Iterator[list[Run]]:
        """Collect the runs of the `planned` blocks inside: what each of them really changed."""
        with tallying(self.number) as runs:
            yield runs

    @contextmanager
    def ahead(self, rows: Sequence[int]) -> Iterator[None]:
        """Forwards of these rows inside the block happen under the plan in force, uncounted.

        Exits and detours of the plan are left out.
        """
        run = self.run
        if run is None:
            raise RuntimeError("No plan is in force that could be run ahead.")
        with running_ahead(run.plan.ahead(rows), self.number):
            yield

    @contextmanager
    def untallied(self) -> Iterator[None]:
        """A pass that repeats what was counted already is in nobody's tally."""
        with untallying(self.number):
            yield

    @property
    def run(self) -> Run | None:
        """The plan in force in this thread, if there is one."""
        return in_force(self.number)

    def check(self, patch: Patch) -> None:
        """UnknownSite or BadPatch, before anything runs, if the patch does not fit this model."""
        for operation in patch:
            self._check(operation)
        for tower, blocks in self.towers.items():
            backs = [o for o in patch if isinstance(o, Detour) and o.tower == tower]
            ends = [target for o in backs for _, target in o.pairs(len(blocks))]
            if len(ends) > len(set(ends)):
                raise BadPatch("The windows of two detours end behind one block.")

    def _check(self, operation: Operation) -> None:
        match operation:
            case LowRank(site=site, left=left, right=right):
                self._width(site)
                shape = tuple(self.linears[site].weight.shape)  # pyright: ignore[reportArgumentType]
                if (left.shape[0], right.shape[1]) != shape:
                    asked = f"{left.shape[0]}x{right.shape[1]}"
                    raise BadPatch(
                        f"A change of {asked} does not fit {site} of {shape[0]}x{shape[1]}."
                    )
            case Shift(site=site, vector=vector) | Clamp(site=site, decoder=vector):
                if vector.shape[0] != self._width(site):
                    raise BadPatch(f"{vector.shape[0]} numbers do not fit {site}.")
            case Exit(tower=tower, after=last) | Detour(tower=tower, source=last):
                if tower not in self.towers or (last or 0) >= len(self.towers[tower]):
                    raise UnknownSite(f"{tower}.block.{last}", self.name)

    def _width(self, path: str) -> int:
        """Of a stream, or of a linear layer's input; UnknownSite if there is no such place."""
        site = Site.parse(path)
        if site.kind == "linear":
            if path not in self.linears:
                raise UnknownSite(path, self.name)
            return int(self.linears[path].in_features)  # pyright: ignore[reportArgumentType]
        blocks = self.towers.get(site.tower)
        if blocks is None or (site.block or 0) >= len(blocks):
            raise UnknownSite(path, self.name)
        return self.family.stream_width(self, site.tower)

    def verify(self) -> None:
        """Read the files again; WrongBase if they are no longer what was loaded."""
        if self.reread is not None and (now := self.reread()) != self.fingerprint:
            raise WrongBase(f"The running {self.name}", self.fingerprint, str(self.path), now)

    def weights_digest(self) -> str:
        """SHA-256 of all hosted parameters now: equal before and after anything we do."""
        found = hashlib.sha256()
        for part, module in sorted(self.modules.items()):
            for name, tensor in sorted(module.state_dict().items()):
                found.update(f"{part}.{canonical(name)}".encode() + bytes_of(tensor))
        return found.hexdigest()

    def close(self) -> None:
        """Take the hooks out; the model can no longer be patched."""
        self.hooks.remove()


def _named(operation: Operation) -> str | None:
    """The name of its positions, if only the caller knows what that means."""
    positions = getattr(operation, "positions", "all")
    return positions if isinstance(positions, str) and positions != "all" else None


def _same(some: Sequence[Patch], others: Sequence[Patch]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _fitted(operation: Operation) -> bool:
    """Whether its tensors are being optimised: such a plan cannot be kept."""
    return isinstance(operation, Shift) and operation.vector.requires_grad


def _all_named(of_row: Sequence[Patch], positions: Sequence[Named]) -> None:
    for row, patch in enumerate(of_row):
        known = positions[row] if row < len(positions) else {}
        for operation in patch:
            name = _named(operation)
            if name is not None and name not in known:
                raise BadPatch(f"Nobody said which tokens of row {row} are {name!r}.")
