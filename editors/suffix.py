"""The part of a CLIP text tower that an edit can still reach, run alone.

An edit at block l changes the stream from the subject's last token on. CLIP is causal, so the keys
and values of the tokens before it are constants in every later block: they are computed once, and
each step of the fit runs only blocks l+1.. on the tokens from the subject to [EOS]; in the last
block only [EOS] asks.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.hosted import HostedModel
from models.text_tower import TextTower, Tokens


@dataclass(frozen=True)
class Clean:
    """One unedited pass over some prompts.

    Attributes:
        key: (rows, inner) input of fc2 at the position.
        output: (rows, d) output of fc2 there, bias included.
        stream: (rows, n, d) what leaves the edited block.
        entering: Per later block, (rows, n, d) what enters it.
        at: (rows,) the position: the subject's last token.
    """

    key: Float[Tensor, "rows inner"]
    output: Float[Tensor, "rows d"]
    stream: Float[Tensor, "rows n d"]
    entering: tuple[Float[Tensor, "rows n d"], ...]
    at: Int[Tensor, " rows"]
    tokens: Tokens


def clean_pass(
    hosted: HostedModel, tower: TextTower, block: int, texts: Sequence[str], at: Sequence[int]
) -> Clean:
    """Read what the fit needs in one pass over the prompts."""
    tokens, site = tower.tokens(texts), tower.fc2_site(block)
    later = [f"{tower.tower}.block.{i}" for i in range(block, len(tower.blocks))]
    with torch.no_grad(), hosted.captured(site, f"{site}:out", *later) as seen:
        tower.module(input_ids=tokens.ids.to(hosted.device))
    rows, places = torch.arange(len(texts)), torch.tensor(at)
    streams = tuple(full(seen[name][0]) for name in later)
    return Clean(
        key=full(seen[site][0][rows, places]),
        output=full(seen[f"{site}:out"][0][rows, places]),
        stream=streams[0],
        entering=streams[:-1],
        at=places,
        tokens=tokens,
    )


class Suffix:
    """Embeddings of the prompts as a function of the change at the subject's last token."""

    def __init__(self, tower: TextTower, block: int, clean: Clean) -> None:
        self.tower, self.clean, self.stream = tower, clean, clean.stream
        self.blocks = [lifted(b) for b in tower.blocks[block + 1 :]]
        self.norm = lifted(tower.final_norm)
        device = clean.stream.device
        self.at, self.eos = clean.at.to(device), clean.tokens.eos.to(device)
        steps = torch.arange(int((self.eos - self.at).max()) + 1, device=device)
        places = self.at[:, None] + steps[None, :]
        self.valid: Bool[Tensor, "rows k"] = places <= self.eos[:, None]
        self.places: Int[Tensor, "rows k"] = places.clamp_max(clean.tokens.ids.shape[1] - 1)
        self.rows = torch.arange(len(self.at), device=device)[:, None].expand_as(self.places)
        reach = torch.arange(clean.tokens.ids.shape[1], device=device)
        self.mask: Bool[Tensor, "rows 1 k n"] = (reach <= self.places[..., None])[:, None]
        self.known = [
            self._keys_and_values(b, e) for b, e in zip(self.blocks, clean.entering, strict=True)
        ]

    @torch.no_grad()
    def _keys_and_values(self, block: nn.Module, entering: Tensor) -> tuple[Tensor, Tensor]:
        normed = block.layer_norm1(entering)  # type: ignore[operator]
        attention = block.self_attn
        return attention.k_proj(normed), attention.v_proj(normed)  # type: ignore[operator,union-attr]

    def embed(self, change: Float[Tensor, "rows d"]) -> Float[Tensor, "rows out"]:
        """Projected [EOS] states when `change` is added to the MLP output at the position."""
        stream = self.stream[self.rows, self.places][self.valid]
        first = (self.places == self.at[:, None])[self.valid]
        owner = self.rows[self.valid]
        stream = stream + first[:, None] * change[owner]
        last = (self.places == self.eos[:, None])[self.valid]
        for number, block in enumerate(self.blocks):
            ask = last if number == len(self.blocks) - 1 else torch.ones_like(last)
            stream = self._block(block, self.known[number], stream, ask)
        if not self.blocks:
            stream = stream[last]
        normed = self.norm(stream)
        projection = self.tower.projection
        return normed if projection is None else normed @ full(projection).mT

    def only(self, keep: Bool[Tensor, " rows"]) -> "Suffix":
        """The same for some of the rows, in their order; the others are not run any more."""
        some = copy.copy(self)
        for name in ("stream", "at", "eos", "valid", "places", "mask"):
            setattr(some, name, getattr(self, name)[keep])
        some.rows = self.rows[: len(some.at)]
        some.known = [(keys[keep], values[keep]) for keys, values in self.known]
        return some

    def _block(
        self, block: nn.Module, known: tuple[Tensor, Tensor], stream: Tensor, ask: Tensor
    ) -> Float[Tensor, "asking d"]:
        attention, normed = block.self_attn, block.layer_norm1(stream)  # type: ignore[operator]
        at = (self.rows[self.valid], self.places[self.valid])
        keys = known[0].index_put(at, attention.k_proj(normed))  # type: ignore[operator,union-attr]
        values = known[1].index_put(at, attention.v_proj(normed))  # type: ignore[operator,union-attr]
        asked = self.valid.clone()
        asked[self.valid] = ask
        width = int(asked.sum(1).max())
        queries = attention.q_proj(normed[ask])  # type: ignore[operator,union-attr]
        mixed = self._attend(queries, keys, values, asked, width)
        stream = stream[ask] + attention.out_proj(mixed)  # type: ignore[operator,union-attr]
        return stream + block.mlp(block.layer_norm2(stream))  # type: ignore[operator]

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, asked: Tensor, width: int
    ) -> Tensor:
        rows, heads = len(asked), self.tower.heads
        slot = (asked.cumsum(1) - 1)[asked]
        owner = self.rows[asked]
        padded = queries.new_zeros(rows, width, queries.shape[-1]).index_put((owner, slot), queries)
        mask = torch.ones(rows, 1, width, keys.shape[1], dtype=torch.bool, device=queries.device)
        mask[owner, 0, slot] = self.mask[:, 0][asked]
        split = lambda t: t.view(rows, t.shape[1], heads, -1).transpose(1, 2)  # noqa: E731
        out = torch.nn.functional.scaled_dot_product_attention(
            split(padded), split(keys), split(values), attn_mask=mask
        )
        return out.transpose(1, 2).reshape(rows, width, -1)[owner, slot]


def full(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it was: fits run in full precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def lifted(module: nn.Module) -> nn.Module:
    """The module itself in full precision, or a float32 copy of it."""
    if next(module.parameters()).dtype in {torch.float32, torch.float64}:
        return module
    return copy.deepcopy(module).float()


def embed_clean(
    hosted: HostedModel, tower: TextTower, texts: Sequence[str]
) -> Float[Tensor, "rows out"]:
    """e(t; 0): projected states at the first [EOS], not normalised, of the unedited tower."""
    tokens, last = tower.tokens(texts, cut=True), f"{tower.tower}.block.{len(tower.blocks) - 1}"
    with torch.no_grad(), hosted.captured(last) as seen:
        tower.module(input_ids=tokens.ids.to(hosted.device))
    states = full(seen[last][0][torch.arange(len(texts)), tokens.eos])
    normed = lifted(tower.final_norm)(states)
    return normed if tower.projection is None else normed @ full(tower.projection).mT


class Meanings:
    """Clean embeddings of one tower's texts; each text is run once."""

    def __init__(self, hosted: HostedModel, tower: TextTower) -> None:
        self.hosted, self.tower = hosted, tower
        self._kept: dict[str, Float[Tensor, " out"]] = {}

    def of(self, texts: Sequence[str]) -> Float[Tensor, "rows out"]:
        """In the order of the texts; those not seen before in one pass."""
        fresh = [t for t in dict.fromkeys(texts) if t not in self._kept]
        if fresh:
            self._kept.update(zip(fresh, embed_clean(self.hosted, self.tower, fresh), strict=True))
        return torch.stack([self._kept[t] for t in texts])
