"""Where a variable may sit: the residual stream behind a block, or one head before W_O, at a token.

Names are those of MIB's submissions, `ResidualStream(Layer-5,Token-last_token)` and
`AttentionHead(Layer-7,Head-3,Token-all)`; layers count from 0.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from evaluation.variables.errors import UnknownUnit
from models.decoder import TOWER
from models.errors import MethodNotApplicable
from models.hosted import HostedModel
from models.language import Language
from models.site import block

ALL = "all"
"""The position that means every token of the base, each from the same place."""
_NAME = re.compile(
    r"(?:ResidualStream\(Layer-(?P<stream>\d+)|AttentionHead\(Layer-(?P<layer>\d+),"
    r"Head-(?P<head>\d+)),Token-(?P<position>[^()]+)\)"
)


@dataclass(frozen=True, kw_only=True, order=True)
class Unit:
    """One vector of the model.

    Attributes:
        layer: The block that the stream leaves, or whose attention the head is in.
        position: The name of the token; `all` is every token.
        head: A query head, whose z before the output projection is meant; None is the stream.
    """

    layer: int
    position: str
    head: int | None = None

    @property
    def name(self) -> str:
        """As submissions write it."""
        if self.head is None:
            return f"ResidualStream(Layer-{self.layer},Token-{self.position})"
        return f"AttentionHead(Layer-{self.layer},Head-{self.head},Token-{self.position})"

    @classmethod
    def parse(cls, name: str) -> "Unit":
        """Read a name; UnknownUnit if it is none."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise UnknownUnit(name, "it is not written as submissions write units.")
        head = None if found["head"] is None else int(found["head"])
        layer = found["stream"] if head is None else found["layer"]
        return cls(layer=int(layer), position=found["position"], head=head)

    @property
    def site(self) -> str:
        """The canonical stream site; UnknownUnit for a head, which is not in the stream."""
        if self.head is not None:
            raise UnknownUnit(self.name, "a head's output is no place of the residual stream.")
        return block(TOWER, self.layer)

    @property
    def first(self) -> int:
        """The first layer that computes anything else when the unit is changed."""
        return self.layer + (self.head is None)


Handle = tuple[Unit, ...]
"""Units that are swapped together, as one place of the variable."""


def width(hosted: HostedModel, unit: Unit) -> int:
    """Numbers in the unit: of the stream, or of one head."""
    family = language(hosted)
    if unit.head is None:
        return family.stream_width(hosted, TOWER)
    return head_width(hosted, unit.layer)


def head_width(hosted: HostedModel, layer: int) -> int:
    """Numbers in z of one query head."""
    heads = int(language(hosted).decoder(hosted).config.num_attention_heads)
    return int(output_projection(hosted, layer).in_features) // heads


def output_projection(hosted: HostedModel, layer: int) -> nn.Linear:
    """W_O of a layer: its input is the heads' z, one behind the other."""
    found = hosted.linears[output_site(hosted, layer)]
    if not isinstance(found, nn.Linear):
        raise MethodNotApplicable("causal_variable", hosted.name, "its attention is not linear.")
    return found


def output_site(hosted: HostedModel, layer: int) -> str:
    """The linear site of W_O."""
    for name in ("self_attn.o_proj", "attn.c_proj"):
        if (site := f"{TOWER}.layers.{layer}.{name}") in hosted.linears:
            return site
    reason = "its attention has no output projection of a known name."
    raise MethodNotApplicable("causal_variable", hosted.family.title, reason)


def language(hosted: HostedModel) -> Language:
    """The family, as one that continues texts; MethodNotApplicable otherwise."""
    if not isinstance(hosted.family, Language):
        reason = "it does not continue texts."
        raise MethodNotApplicable("causal_variable", hosted.family.title, reason)
    return hosted.family


def check(hosted: HostedModel, units: Iterable[Unit], positions: Iterable[str]) -> None:
    """UnknownUnit unless the model has the units and the rows know their positions."""
    decoder = language(hosted).decoder(hosted)
    known = {*positions, ALL}
    for unit in units:
        if not 0 <= unit.layer < len(decoder.layers):
            raise UnknownUnit(unit.name, f"{hosted.name} has {len(decoder.layers)} layers.")
        if unit.head is not None and not 0 <= unit.head < decoder.config.num_attention_heads:
            heads = decoder.config.num_attention_heads
            raise UnknownUnit(unit.name, f"{hosted.name} has {heads} heads in a layer.")
        if unit.position not in known:
            raise UnknownUnit(unit.name, f"the rows name {', '.join(sorted(known))}.")


def sweep(hosted: HostedModel, positions: Sequence[str]) -> tuple[Handle, ...]:
    """The stream behind every layer at every position, one handle each."""
    layers = range(len(language(hosted).decoder(hosted).layers))
    return tuple((Unit(layer=layer, position=name),) for layer in layers for name in positions)
