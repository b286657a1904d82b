"""Forwards of the library's own layers that show, and may replace, what sources and reads do.

Hooks stand in the evaluation's model for the length of a block. While they stand, keys and values
leave their linear layers once per query head (`num_key_value_groups` is 1 for so long): so a
rotation, a norm of the keys and a soft-cap are the library's, and the gradient of every copy of
grouped keys is there without undoing any of them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy, Layer
from models.decoder import masks

Replace = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Seen:
    """What one forward showed, layer by layer; tensors hang in its graph where there is one.

    Attributes:
        attention_in, mlp_in: The stream that enters each norm.
        reads: Queries, keys and values (rows, tokens, 3, heads, width), before any rotation.
        heads: The heads' values, side by side, before the output matrix.
        sums: What leaves the output matrix: all heads together, with its bias.
        mlp_normed, mlps: What the MLP reads, and what its node writes.
        last: The stream behind the last layer.
    """

    attention_in: list[Tensor] = field(default_factory=list)
    reads: list[tuple[Tensor, ...]] = field(default_factory=list)
    heads: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    mlp_in: list[Tensor] = field(default_factory=list)
    mlp_normed: list[Tensor] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)
    last: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True, eq=False, kw_only=True)
class Replacing:
    """What a forward puts in the place of outputs, by layer."""

    heads: Mapping[int, Replace] = field(default_factory=dict)
    sums: Mapping[int, Replace] = field(default_factory=dict)
    mlps: Mapping[int, Replace] = field(default_factory=dict)


def forward(
    anatomy: Anatomy,
    entering: Float[Tensor, "rows tokens d"],
    replacing: Replacing | None = None,
) -> Seen:
    """Run all layers on what enters the first one."""
    seen = Seen()
    with ExitStack() as undo:
        for index, layer in enumerate(anatomy.layers):
            undo.enter_context(ungrouped(anatomy, layer))
            for remove in _watched(layer, index, seen, replacing or Replacing()):
                undo.callback(remove)
        seen.last = anatomy.family.run_layers(anatomy.hosted, entering, 0)
    return seen


@contextmanager
def ungrouped(anatomy: Anatomy, layer: Layer) -> Iterator[None]:
    """Inside the block every query head has keys and values of its own."""
    if anatomy.groups == 1:
        yield
        return
    with ExitStack() as undo:
        undo.enter_context(_alone(layer))
        for linear in layer.into[1:]:
            hook = linear.register_forward_hook(_spread_over(anatomy))
            undo.callback(hook.remove)
        yield


def _spread_over(anatomy: Anatomy) -> Callable[..., Tensor]:
    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        own = output.unflatten(-1, (-1, anatomy.head_width))
        return own.repeat_interleave(anatomy.groups, -2).flatten(-2)

    return hook


def _watched(
    layer: Layer, index: int, seen: Seen, replacing: Replacing
) -> Iterator[Callable[[], None]]:
    """Put the hooks in, one undo for each."""
    reads: list[Tensor] = []

    def enters(kept: list[Tensor]) -> Callable[..., None]:
        return lambda _module, args: kept.append(args[0])

    def leaves(kept: list[Tensor], by: Replace | None = None) -> Callable[..., Tensor | None]:
        def hook(_module: Any, _args: Any, output: Tensor) -> Tensor | None:
            kept.append(output if by is None else by(output))
            return None if by is None else kept[-1]

        return hook

    def values(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        seen.reads.append(tuple(reads))
        by = replacing.heads.get(index)
        seen.heads.append(args[0] if by is None else by(args[0]))
        return None if by is None else (seen.heads[-1],)

    yield layer.attention_norm.register_forward_pre_hook(enters(seen.attention_in)).remove
    for linear in layer.into:
        yield linear.register_forward_hook(leaves(reads)).remove
    yield layer.out.register_forward_pre_hook(values).remove
    yield layer.out.register_forward_hook(leaves(seen.sums, replacing.sums.get(index))).remove
    yield layer.mlp_norm.register_forward_pre_hook(enters(seen.mlp_in)).remove
    yield layer.mlp_norm.register_forward_hook(leaves(seen.mlp_normed)).remove
    yield layer.mlp.register_forward_hook(leaves(seen.mlps, replacing.mlps.get(index))).remove


@dataclass(frozen=True, eq=False)
class Geometry:
    """Masks and rotations of rows of one length, per layer type."""

    rows: int
    tokens: int
    masks: Mapping[str, Tensor | None]
    turns: Mapping[str, Any]


def geometry(anatomy: Anatomy, rows: int, tokens: int) -> Geometry:
    """What the library's attention is told about rows that all begin at position 0."""
    dtype, device = anatomy.hosted.dtype, anatomy.device
    places = torch.arange(tokens, device=device).expand(rows, tokens)
    eager = anatomy.family.default_attention == "eager"
    seen = masks(anatomy.decoder, places, (0,) * rows, dtype, eager=eager)
    stream = torch.zeros((), dtype=dtype, device=device).expand(rows, tokens, 1)
    return Geometry(rows, tokens, seen, anatomy.decoder.turns(stream, places))


def attend(
    anatomy: Anatomy,
    index: int,
    reads: Float[Tensor, "rows tokens 3 heads width"],
    place: Geometry,
) -> Float[Tensor, "rows tokens heads width"]:
    """What the layer's heads make of given queries, keys and values.

    The library's attention runs with its own masks, rotations and bounds; its matrices see one
    token, whose results are thrown away.
    """
    layer, found = anatomy.layers[index], []

    def one(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][:1, :1],)

    def put(given: Tensor) -> Callable[..., Tensor]:
        return lambda _module, _args, _output: given

    def take(_module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        found.append(args[0])
        return (args[0][:1, :1],)

    kind = anatomy.decoder.layer_types[index]
    turned = {} if place.turns[kind] is None else {"position_embeddings": place.turns[kind]}
    blank = reads.new_zeros(()).expand(place.rows, place.tokens, anatomy.graph.width)
    given = (reads.flatten(2),) if layer.fused else tuple(reads.flatten(3).unbind(2))
    with ExitStack() as undo:
        if anatomy.groups > 1:
            undo.enter_context(_alone(layer))
        for linear, tensor in zip(layer.into, given, strict=True):
            undo.callback(linear.register_forward_pre_hook(one).remove)
            undo.callback(linear.register_forward_hook(put(tensor)).remove)
        undo.callback(layer.out.register_forward_pre_hook(take).remove)
        layer.attention(
            hidden_states=blank, attention_mask=place.masks[kind], past_key_values=None, **turned
        )
    return found[0].unflatten(-1, (anatomy.graph.heads, -1))


@contextmanager
def _alone(layer: Layer) -> Iterator[None]:
    """Inside the block the layer's attention takes keys and values to be one per query head."""
    before = layer.attention.num_key_value_groups
    layer.attention.num_key_value_groups = 1
    try:
        yield
    finally:
        layer.attention.num_key_value_groups = before


def run_mlp(
    anatomy: Anatomy, index: int, stream: Float[Tensor, "rows tokens d"]
) -> Float[Tensor, "rows tokens d"]:
    """What the layer's MLP node writes for a stream that its norm has not seen yet."""
    layer = anatomy.layers[index]
    found = layer.mlp_norm(stream)
    for part in layer.parts:
        found = part(found)
    return found
