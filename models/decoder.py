"""Where things stand in a decoder, found by structure, and which keys a token may look at.

The stack is the module that holds both the token embeddings and the decoder layers, wherever a
class puts it: at `model` in Llama, `transformer` in GPT-2, `model.language_model` in models that
also see. A linear layer is named by its layer and its path inside it, `lm.layers.7.mlp.down_proj`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import UnsupportedFamily
from models.sight import Span

TOWER = "lm"
LayerType = Literal["full_attention", "sliding_attention"]


@dataclass(frozen=True, eq=False)
class Decoder:
    """The parts of a language model that a forward passes, in their order.

    Attributes:
        embed: Token embeddings, scaled as the class scales them.
        places: Learned position embeddings; None where positions are rotated in.
        rotary: What turns positions into rotations; None where they are learned.
        layers: The decoder layers.
        norm: The final norm.
        head: From the normed stream to logits, before any soft-cap.
        config: Of the text model.
    """

    embed: nn.Module
    places: nn.Module | None
    rotary: nn.Module | None
    layers: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    config: Any

    @cached_property
    def layer_types(self) -> tuple[LayerType, ...]:
        """Per layer how far its tokens look back."""
        stated = getattr(self.config, "layer_types", None)
        if stated is not None:
            return tuple(stated)
        sliding = getattr(self.config, "sliding_window", None) is not None
        return ("sliding_attention" if sliding else "full_attention",) * len(self.layers)

    @cached_property
    def window(self) -> int | None:
        """Keys that a token of a sliding layer sees, itself included; None without such layers."""
        if "sliding_attention" not in self.layer_types:
            return None
        return int(self.config.sliding_window)

    @cached_property
    def width(self) -> int:
        """Of the residual stream."""
        return int(self.config.hidden_size)

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(heads, dim) of each layer's keys and values."""
        heads = int(self.config.num_attention_heads)
        dim = getattr(self.config, "head_dim", None) or self.width // heads
        kept = getattr(self.config, "num_key_value_heads", None) or heads
        return ((int(kept), int(dim)),) * len(self.layers)

    @cached_property
    def turns_by_type(self) -> bool:
        """Whether the rotation differs between layer types, as in Gemma 3."""
        rotary = self.rotary
        return rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters

    def turns(
        self, stream: Float[Tensor, "rows tokens d"], positions: Int[Tensor, "*axes rows tokens"]
    ) -> Mapping[str, Any]:
        """Per layer type the rotations of these positions; None where positions are learned."""
        types: dict[str, Any] = dict.fromkeys(self.layer_types)
        if self.rotary is None:
            return types
        if self.turns_by_type:
            return {kind: self.rotary(stream, positions, kind) for kind in types}
        return dict.fromkeys(types, self.rotary(stream, positions))


def find_decoder(model: Any) -> Decoder:
    """The decoder inside a model with a language head; UnsupportedFamily if there is none."""
    config, tokens = model.config.get_text_config(), model.get_input_embeddings()
    for stack in model.modules():
        children = list(stack.children())
        layers = [c for c in children if isinstance(c, nn.ModuleList) and len(c) > 0]
        if len(layers) == 1 and any(child is tokens for child in children):
            return Decoder(
                embed=tokens,
                places=_only(c for c in children if type(c) is nn.Embedding and c is not tokens),
                rotary=_only(c for c in children if "Rotary" in type(c).__name__),
                layers=layers[0],
                norm=next(c for c in children if type(c).__name__.endswith("Norm")),
                head=model.get_output_embeddings(),
                config=config,
            )
    raise UnsupportedFamily(type(model).__name__, "decoders whose stack holds its embeddings")


def _only(found: Any) -> Any:
    return next(iter(found), None)


def linears_of(decoder: Decoder) -> dict[str, nn.Module]:
    """The linear layers of all decoder layers by canonical path; the head is not among them."""
    return {
        f"{TOWER}.layers.{index}.{name}": module
        for index, layer in enumerate(decoder.layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


def masks(  # noqa: PLR0913 - what a mask is made of
    decoder: Decoder,
    positions: Int[Tensor, "rows tokens"],
    starts: Sequence[int],
    dtype: torch.dtype,
    *,
    eager: bool,
    joint: Sequence[Sequence[Span]] = (),
    within: bool = True,
) -> dict[str, Tensor | None]:
    """Per layer type what is added to attention scores (rows, 1, tokens, keys).

    Key j stands at position j. None where no mask is needed: every key is seen, or the attention
    implementation is causal by itself.

    Args:
        decoder: Whose layer types are asked for.
        positions: Of the new tokens.
        starts: The first of each row, known without reading `positions`.
        dtype: Of the scores.
        eager: Whether the implementation knows nothing of causality.
        joint: Per row the positions whose tokens see each other in both directions.
        within: Whether they do so inside a layer's window only, or however far apart they stand.
    """
    tokens, keys = positions.shape[1], max(starts) + positions.shape[1]
    joint = [
        [(first, end) for first, end in of if first < start + tokens and start < end]
        for of, start in zip(joint, starts, strict=False)
    ]
    level = min(starts) == max(starts) and not any(joint)
    plain = level and (tokens == 1 or (not eager and starts[0] == 0))
    found: dict[str, Tensor | None] = {}
    for kind in dict.fromkeys(decoder.layer_types):
        window = decoder.window if kind == "sliding_attention" else None
        if window is not None and keys <= window:
            window = None
        bare = plain and window is None
        found[kind] = None if bare else _mask(positions, keys, dtype, window, joint, within)
    return found


def _mask(
    positions: Int[Tensor, "rows tokens"],
    keys: int,
    dtype: torch.dtype,
    window: int | None,
    joint: Sequence[Sequence[Span]] = (),
    within: bool = True,
) -> Float[Tensor, "rows 1 tokens keys"]:
    at, own = torch.arange(keys, device=positions.device), positions[:, None, :, None]
    hidden = at > own
    if window is not None and not within:
        hidden |= at <= own - window
    for row, spans in enumerate(joint):
        for first, end in spans:
            both = (own[row] >= first) & (own[row] < end) & (at >= first) & (at < end)
            hidden[row] &= ~both
    if window is not None and within:
        hidden |= at <= own - window
    blank = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return blank.masked_fill_(hidden, torch.finfo(dtype).min)
