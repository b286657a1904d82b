"""The modules of a decoder that a circuit's forwards read and replace, and their matrices by head.

| | GPT-2 | Llama, Mistral, Qwen | Gemma 2 |
|---|---|---|---|
| norm before q, k, v / MLP | `ln_1` / `ln_2` | `input_layernorm` / `post_attention_layernorm` |
`input_layernorm` / `pre_feedforward_layernorm` |
| q, k, v | thirds of `c_attn` | `q_proj`, `k_proj`, `v_proj` | the same |
| head | input of `c_proj` | input of `o_proj` | the same, before `post_attention_layernorm` |
| MLP | `mlp` | `mlp` | `post_feedforward_layernorm` |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evaluation.circuits.errors import NoGraph
from evaluation.circuits.graph import Graph
from evaluation.circuits.norms import Norm, read_norm
from models.decoder import Decoder
from models.hosted import HostedModel
from models.language import Language


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One decoder layer.

    Attributes:
        attention: Heads together; `fused` says whether one matrix makes q, k and v.
        into: What makes q, k and v: three linear layers, or one.
        out: From the heads' values, side by side, to the stream.
        attention_norm, mlp_norm: In front of each half.
        after: The norm between the heads' sum and the stream (Gemma 2); None elsewhere.
        mlp: What the MLP node is the output of.
        parts: The MLP's modules, in the order in which they follow `mlp_norm`.
    """

    attention: Any
    into: tuple[Any, ...]
    out: Any
    attention_norm: nn.Module
    mlp_norm: nn.Module
    after: nn.Module | None
    mlp: nn.Module
    parts: tuple[nn.Module, ...]

    @property
    def fused(self) -> bool:
        """Whether q, k and v leave one linear layer."""
        return len(self.into) == 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Anatomy:
    """A hosted decoder, as circuits see it; made by `find_anatomy`."""

    hosted: HostedModel
    family: Language
    decoder: Decoder
    layers: tuple[Layer, ...]
    graph: Graph
    attention_norms: tuple[Norm, ...]
    mlp_norms: tuple[Norm, ...]
    after_norms: tuple[Norm | None, ...]
    final_norm: Norm

    @cached_property
    def head_width(self) -> int:
        """Numbers per head."""
        return self.decoder.shapes[0][1]

    @cached_property
    def groups(self) -> int:
        """Query heads that share keys and values."""
        return self.graph.heads // self.decoder.shapes[0][0]

    @property
    def dtype(self) -> torch.dtype:
        """What scores and sums are computed in: at least float32."""
        return torch.promote_types(self.hosted.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.hosted.device

    def reading(self, layer: int) -> Float[Tensor, "3 heads width d"]:
        """The matrices from the normed stream to q, k, v: every query head has its own."""
        heads, wide = self.graph.heads, self.head_width
        into = self.layers[layer].into
        if self.layers[layer].fused:
            return into[0].weight.detach().view(3, heads, wide, -1)
        return torch.stack([self._spread(m.weight.detach(), wide) for m in into])

    def projected(
        self, layer: int, normed: Float[Tensor, "tokens d"]
    ) -> Float[Tensor, "tokens 3 heads width"]:
        """What the matrices alone make of a normed stream: no bias, no copy of the matrices."""
        heads, wide = self.graph.heads, self.head_width
        made = [
            nn.functional.linear(normed, m.weight.to(normed.dtype)) for m in self.layers[layer].into
        ]
        if self.layers[layer].fused:
            return made[0].view(-1, 3, heads, wide)
        own = [part.view(len(normed), -1, wide) for part in made]
        return torch.stack([x.repeat_interleave(heads // x.shape[1], 1) for x in own], 1)

    def biases(self, layer: int) -> Float[Tensor, "3 heads width"] | None:
        """What the linear layers add, per query head; None where they add nothing."""
        heads, wide = self.graph.heads, self.head_width
        into = self.layers[layer].into
        if into[0].bias is None:
            return None
        if self.layers[layer].fused:
            return into[0].bias.detach().view(3, heads, wide)
        return torch.stack([self._spread(m.bias.detach(), wide) for m in into])

    def value_biases(self, layer: int) -> Float[Tensor, "heads width"] | None:
        """What values are at least, whatever is read; None where they have no bias."""
        biases = self.biases(layer)
        return None if biases is None else biases[2]

    @property
    def centred(self) -> bool:
        """Whether every norm takes the stream's mean off: then nobody reads that mean."""
        norms = (*self.attention_norms, *self.mlp_norms, self.final_norm)
        return all(norm.centred for norm in norms)

    def writing(self, layer: int) -> Float[Tensor, "heads width d"]:
        """The matrices from the heads' values to the stream, without the bias."""
        weight = self.layers[layer].out.weight.detach()
        return weight.T.view(self.graph.heads, self.head_width, -1)

    def final_logits(self, stream: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """From the stream behind the last layer to logits, bounded as the model bounds them."""
        logits = self.decoder.head(self.decoder.norm(stream))
        return self.family.soft_cap(self.hosted, logits.to(self.dtype))

    def embedded(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens d"]:
        """The source `input`: token embeddings, scaled as the class scales them."""
        return self.decoder.embed(ids)

    def entering(self, ids: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens d"]:
        """What enters layer 0: the embeddings, and positions where they are learned."""
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return self.family.embed(self.hosted, ids, places)

    def _spread(self, weight: Tensor, wide: int) -> Tensor:
        own = weight.view(-1, wide, *weight.shape[1:])
        return own.repeat_interleave(self.graph.heads // len(own), 0)


def find_anatomy(hosted: HostedModel) -> Anatomy:
    """The decoder of a hosted model, taken apart.

    Raises:
        NoGraph: Its layers are written in a way that nobody has taken apart yet.
    """
    family, decoder = hosted.family, hosted.parts.get("decoder")
    if not isinstance(family, Language) or decoder is None:
        raise NoGraph(hosted.name, "it is not a decoder whose layers are called one by one")
    layers = tuple(_layer(found, hosted.name) for found in decoder.layers)
    heads = int(decoder.config.num_attention_heads)
    _check_widths(layers, heads * decoder.shapes[0][1], hosted.name)
    return Anatomy(
        hosted=hosted,
        family=family,
        decoder=decoder,
        layers=layers,
        graph=Graph(layers=len(layers), heads=heads, width=decoder.width),
        attention_norms=tuple(read_norm(x.attention_norm, hosted.name) for x in layers),
        mlp_norms=tuple(read_norm(x.mlp_norm, hosted.name) for x in layers),
        after_norms=tuple(
            None if x.after is None else read_norm(x.after, hosted.name) for x in layers
        ),
        final_norm=read_norm(decoder.norm, hosted.name),
    )


def _layer(found: Any, model: str) -> Layer:
    if hasattr(found, "attn") and hasattr(found.attn, "c_attn"):
        return Layer(
            attention=found.attn,
            into=(found.attn.c_attn,),
            out=found.attn.c_proj,
            attention_norm=found.ln_1,
            mlp_norm=found.ln_2,
            after=None,
            mlp=found.mlp,
            parts=(found.mlp,),
        )
    attention = getattr(found, "self_attn", None)
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if attention is None or not all(hasattr(attention, name) for name in names):
        raise NoGraph(model, f"{type(found).__name__} has no separate queries, keys and values")
    wrapped = hasattr(found, "post_feedforward_layernorm")
    return Layer(
        attention=attention,
        into=tuple(getattr(attention, name) for name in names[:3]),
        out=attention.o_proj,
        attention_norm=found.input_layernorm,
        mlp_norm=found.pre_feedforward_layernorm if wrapped else found.post_attention_layernorm,
        after=found.post_attention_layernorm if wrapped else None,
        mlp=found.post_feedforward_layernorm if wrapped else found.mlp,
        parts=(found.mlp, found.post_feedforward_layernorm) if wrapped else (found.mlp,),
    )


def _check_widths(layers: Sequence[Layer], width: int, model: str) -> None:
    for layer in layers:
        if int(layer.out.in_features) != width:
            raise NoGraph(model, "its heads are not written side by side")
