"""EAP-IG-inputs of a GPT-2 the plain way: every copy and every output at the stream's width.

One copy of the stream for each of q, k and v of each head, each normed by itself; a difference
tensor (rows, tokens, sources, d); at every copy's gradient one product with the sources before it.
`published` does two more things as the published code does on TransformerLens: a head's matrix is
multiplied by broadcasting and then summed, and weights carry gradients too. `matrix` multiplies
matrices and freezes the weights.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evaluation.circuits.batches import Batch
from evaluation.circuits.graph import Graph

Products = Literal["published", "matrix"]


class Plain:
    """A `GPT2LMHeadModel` written out, with a score per edge."""

    def __init__(self, model: Any, graph: Graph, products: Products) -> None:
        self.model, self.graph, self.products = model.transformer, graph, products
        self.head = model.lm_head
        self.scores = torch.zeros(graph.sources, graph.destinations)

    def scored(self, batch: Batch, steps: int) -> Tensor:
        """Scores of all edges, as a mean over the rows."""
        for weight in self.model.parameters():
            weight.requires_grad_(self.products == "published")
        try:
            return self._scored(batch, steps)
        finally:
            for weight in self.model.parameters():
                weight.requires_grad_(False).grad = None

    def _scored(self, batch: Batch, steps: int) -> Tensor:
        clean, corrupted = batch.clean, batch.corrupted
        with torch.no_grad():
            differences = -self._outputs(clean)
            differences += self._outputs(corrupted)
            a, b = self._entering(clean), self._entering(corrupted)
        for k in range(steps):
            leaf = (b + (k / steps) * (a - b)).requires_grad_()
            logits = self._forward(leaf, self._scoring(differences))
            loss = -batch.margins(logits[:, -1]).mean()
            loss.backward()
        return self.scores / steps

    def _entering(self, ids: Tensor) -> Tensor:
        return self.model.wte(ids) + self.model.wpe(torch.arange(ids.shape[1]))

    def _outputs(self, ids: Tensor) -> Tensor:
        found = torch.zeros(*ids.shape, self.graph.sources, self.graph.width)
        found[:, :, 0] = self.model.wte(ids)

        def keep(first: int, output: Tensor) -> None:
            found[:, :, first : first + output.shape[2]] = output

        self._forward(self._entering(ids), None, keep)
        return found

    def _scoring(self, differences: Tensor) -> Callable[[Tensor, slice, int], None]:
        def at(copy: Tensor, into: slice, limit: int) -> None:
            def hook(gradient: Tensor) -> None:
                before = differences[:, :, :limit]
                self.scores[:limit, into] += torch.einsum("btsd,bthd->sh", before, gradient)

            copy.register_hook(hook)

        return at

    def _forward(
        self,
        stream: Tensor,
        scoring: Callable[[Tensor, slice, int], None] | None,
        keep: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        graph = self.graph
        for layer, block in enumerate(self.model.h):
            first, into = graph.before(layer), graph.into_heads(layer).start
            copies = [stream.unsqueeze(2).repeat(1, 1, graph.heads, 1) for _ in range(3)]
            for i, copy in enumerate(copies):
                if scoring is not None:
                    start = into + i * graph.heads
                    scoring(copy, slice(start, start + graph.heads), first)
            heads = self._heads(block, copies)
            stream = stream + heads.sum(2) + block.attn.c_proj.bias
            copy = stream.unsqueeze(2).repeat(1, 1, 1, 1)
            if scoring is not None:
                place = graph.into_mlp(layer)
                scoring(copy, slice(place, place + 1), first + graph.heads)
            mlp = block.mlp(block.ln_2(copy[:, :, 0]))
            stream = stream + mlp
            if keep is not None:
                keep(first, heads)
                keep(first + graph.heads, mlp[:, :, None])
        copy = stream.unsqueeze(2).repeat(1, 1, 1, 1)
        if scoring is not None:
            scoring(copy, slice(graph.logits, graph.destinations), graph.sources)
        return self.head(self.model.ln_f(copy[:, :, 0]))

    def _heads(self, block: nn.Module, copies: list[Tensor]) -> Tensor:
        part: Any = block
        heads, wide = self.graph.heads, self.graph.width // self.graph.heads
        weight = part.attn.c_attn.weight.view(3, heads, wide, -1)
        bias = part.attn.c_attn.bias.view(3, heads, wide)
        q, k, v = (
            (self._by_head(part.ln_1(copies[i]), weight[i].mT) + bias[i]).transpose(1, 2)
            for i in range(3)
        )
        scores = (q @ k.mT) * wide**-0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        z = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        out = part.attn.c_proj.weight.T.view(heads, wide, -1)
        return self._by_head(z.transpose(1, 2), out)

    def _by_head(self, x: Tensor, weight: Tensor) -> Tensor:
        """(rows, tokens, heads, in) by (heads, in, out)."""
        if self.products == "matrix":
            return torch.einsum("bthi,hio->btho", x, weight)
        return (x[..., None] * weight).sum(-2)
