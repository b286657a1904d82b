"""Uniform gradient sampling: learn for every edge the probability that it is kept.

Li and Janson 2024. Each example draws its own masks: alpha = 1 - clamp((r - theta)/w + 1/2, 0, 1)
with r uniform and w = theta (1 - theta), so an edge is mixed with probability w and switched
otherwise. What passes a mixed edge moves theta as if alpha were theta, and counts by the share of
examples that were mixed there. Loss: KL from the model's answer distribution, plus a price per kept
edge, plus a price per connected head.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.attribution import Scores
from evaluation.circuits.batches import Batch
from evaluation.circuits.graph import Graph
from evaluation.circuits.passes import Seen, attend, geometry, run_mlp
from evaluation.circuits.points import Cost
from evaluation.circuits.running import wrapped_heads
from evaluation.circuits.written import run
from models.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How masks are learned.

    Attributes:
        price: Of a kept edge (lambda).
        rate, betas: Of AdamW, with the corrupted run as replacement.
        rows: Examples of a step, of one length.
        passes: Over all pairs.
        start: Of every edge's parameter, before the sigmoid.
        seed: Of the draws.
    """

    price: float = 1e-3
    rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.995)
    rows: int = 5
    passes: int = 1
    start: float = 1.0
    seed: int = 0


def sampled_masks(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    how: Sampling | None = None,
    cost: Cost | None = None,
) -> Generator[Progress, None, Scores]:
    """Learn the probabilities of all edges: their scores, always positive.

    Args:
        anatomy: Of the model.
        batches: The pairs; every step takes some of one length, in drawn order.
        how: Price, rate and passes.
        cost: Counts the runs.
    """
    how, cost, graph = how or Sampling(), cost or Cost(), anatomy.graph
    draw = torch.Generator().manual_seed(how.seed)
    kept = torch.full(graph.real.shape, how.start, dtype=anatomy.dtype).requires_grad_()
    adam = torch.optim.AdamW([kept], lr=how.rate, betas=how.betas)
    parts = [
        (batch.clean[i : i + how.rows], batch.corrupted[i : i + how.rows])
        for batch in batches
        for i in range(0, len(batch.rows), how.rows)
    ]
    total, order = how.passes * len(parts), list[int]()
    for step in range(total):
        if step % len(parts) == 0:
            order = torch.randperm(len(parts), generator=draw).tolist()
        clean, corrupted = parts[order[step % len(parts)]]
        masks = draw_masks(kept, graph, len(clean), draw)
        loss = _distance(anatomy, clean, corrupted, masks) + _prices(graph, kept, how.price)
        (kept.grad,) = torch.autograd.grad(loss, [kept])
        adam.step()
        cost.forwards += 3 * len(clean)
        cost.backwards += len(clean)
        values = {"loss": float(loss.detach())}
        yield Progress(stage="masks", done=step + 1, total=total, values=values)
    return Scores(edges=kept.detach().sigmoid().double() * graph.real)


def draw_masks(
    kept: Float[Tensor, "sources destinations"],
    graph: Graph,
    rows: int,
    draw: torch.Generator,
) -> Float[Tensor, "rows sources destinations"]:
    """Masks of some examples, from the edges' parameters."""
    theta = kept.sigmoid()
    width = (theta * (1 - theta)).detach()
    uniform = torch.rand((rows, *kept.shape), generator=draw, dtype=kept.dtype)
    # Inside the window alpha has the slope 1/w: taken times w, theta moves as alpha does.
    moved = theta.detach() + width * (theta - theta.detach())
    masks = 1 - ((uniform - moved) / width + 0.5).clamp(0, 1)
    mixed = ((masks > 1e-3) & (masks < 1 - 1e-3)).sum(0).clamp(min=1)
    weighted = rows / mixed * (masks - masks.detach()) + masks.detach()
    return weighted * graph.real


def _prices(graph: Graph, kept: Tensor, price: float) -> Tensor:
    theta = kept.sigmoid() * graph.real
    into = torch.zeros(graph.sources + 1, dtype=theta.dtype)
    degree = theta.sum(1) + into.index_add(0, graph.owners, theta.sum(0))[:-1]
    heads = torch.tensor(
        [graph.head(layer, h) for layer in range(graph.layers) for h in range(graph.heads)]
    )
    half = graph.layers * graph.heads / 2
    connected = torch.tanh(degree[heads] / half).sum() * half
    return price * theta.sum() + min(price / 2, 2e-4) * connected


def _distance(anatomy: Anatomy, clean: Tensor, corrupted: Tensor, masks: Tensor) -> Tensor:
    """KL from the model's distribution at the last token to the masked one's, mean over rows."""
    base, _ = run(anatomy, corrupted)
    whole, _ = run(anatomy, clean)
    with torch.no_grad():
        told = anatomy.final_logits(whole.last[:, -1]).log_softmax(-1)
    found = masked_logits(anatomy, clean, corrupted, base, masks).log_softmax(-1)
    return nn.functional.kl_div(found, told, reduction="batchmean", log_target=True)


def masked_logits(
    anatomy: Anatomy,
    clean: Tensor,
    corrupted: Tensor,
    base: Seen,
    masks: Float[Tensor, "rows sources destinations"],
) -> Float[Tensor, "rows vocab"]:
    """The switch function with masks between 0 and 1: 1 keeps an edge. Carries gradients.

    Args:
        anatomy: Of the model.
        clean: Token ids.
        corrupted: Token ids of the run that takes over where a mask is 0.
        base: That run.
        masks: Of every row.
    """
    with torch.enable_grad():
        return _Soft(anatomy, base, masks.to(anatomy.device)).logits(clean, corrupted)


class _Soft:
    """One forward, layer by layer; every destination reads its own mixture."""

    def __init__(self, anatomy: Anatomy, base: Seen, masks: Tensor) -> None:
        self.anatomy, self.graph, self.base, self.masks = anatomy, anatomy.graph, base, masks
        self.changes: list[Tensor] = []

    def logits(self, clean: Tensor, corrupted: Tensor) -> Tensor:
        anatomy, graph = self.anatomy, self.graph
        self.changes.append(anatomy.embedded(clean) - anatomy.embedded(corrupted))
        place = geometry(anatomy, *clean.shape)
        for layer in range(graph.layers):
            stream = self._read(self.base.attention_in[layer], graph.into_heads(layer))
            normed = anatomy.layers[layer].attention_norm(stream)
            normed = normed.unflatten(0, (3, graph.heads))
            reads = torch.einsum("ihrtd,ihwd->rtihw", normed, anatomy.reading(layer))
            bias = anatomy.biases(layer)
            values = attend(anatomy, layer, reads if bias is None else reads + bias, place)
            change = values - self.base.heads[layer].unflatten(-1, (graph.heads, -1))
            written = torch.einsum("rthw,hwd->hrtd", change, anatomy.writing(layer))
            into = graph.into_mlp(layer)
            self.changes += written.unbind(0) if not graph.parallel else []
            stream = self._read(self.base.mlp_in[layer], slice(into, into + 1))[0]
            self.changes += written.unbind(0) if graph.parallel else []
            self.changes.append(run_mlp(anatomy, layer, stream) - self.base.mlps[layer])
        stream = self._read(self.base.last, slice(graph.logits, graph.destinations))
        return anatomy.final_logits(stream[0, :, -1])

    def _read(self, stream: Tensor, into: slice) -> Float[Tensor, "columns rows tokens d"]:
        picked = self.masks[:, : len(self.changes), into].to(stream.dtype)
        changes = torch.stack(self.changes)
        wrapped = wrapped_heads(self.anatomy, range(len(changes)))
        direct = picked.clone()
        for _, places in wrapped:
            direct[:, places] = 0
        read = stream + torch.einsum("rsv,srtd->vrtd", direct, changes)
        for layer, places in wrapped:
            after, base = self.anatomy.layers[layer].after, self.base.sums[layer]
            moved = torch.einsum("rsv,srtd->vrtd", picked[:, places], changes[places])
            if after is not None:
                read = read + after(base + moved) - after(base)
        return read
