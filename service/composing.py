"""Edits that requests name together, solved once and kept by their content."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from editors import joint
from editors.delta import Delta
from models.hosted import HostedModel
from service.orders import EditOrder

_COMPOSITIONS = 512


class Compositions:
    """Joint solutions of edits that requests name together, by their digests and strengths."""

    def __init__(self, hosted: HostedModel, delta: Callable[[str], Delta]) -> None:
        self.hosted, self.delta = hosted, delta
        self.kept: OrderedDict[tuple[tuple[str, float], ...], joint.Composition] = OrderedDict()
        self.lock = Lock()

    def of(self, edits: tuple[EditOrder, ...]) -> joint.Composition:
        """The composition; the same object for the same edits in any order."""
        key = tuple(sorted((e.digest, e.strength) for e in edits))
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        named = [self._named(edit) for edit in edits]
        composed = joint.compose(named)
        self.hosted.check(composed.patch)
        with self.lock:
            self.kept[key] = composed
            while len(self.kept) > _COMPOSITIONS:
                self.kept.popitem(last=False)
        return composed

    def _named(self, edit: EditOrder) -> joint.Named:
        delta = self.delta(edit.digest)
        delta.check_base(self.hosted, edit.label)
        return joint.Named(name=edit.label, delta=delta, strength=edit.strength)
