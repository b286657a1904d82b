"""Information flow routes: how much of what a destination reads comes from each source.

Ferrando and Voita 2024, as MIB runs it. With y_u the output of source u and x_v the stream that
destination v reads: p_uv = max(0, |x_v|_1 - |x_v - y_u|_1), as a share of its sum over u, per
token; the mean over the tokens of an example, then over examples. There is no corrupted prompt and
no gradient. Shares are not comparable between destinations: circuits are grown greedily. Heads are
taken before whatever norm stands behind them. Behind folded weights (`parity`) sources and streams
are others, and so are the shares.
"""

from collections.abc import Generator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.attribution import Scores
from evaluation.circuits.batches import Batch
from evaluation.circuits.contraction import CHUNK_BYTES
from evaluation.circuits.passes import Seen
from evaluation.circuits.points import Cost
from evaluation.circuits.written import folded, run, spread
from models.progress import Progress


@torch.no_grad()
def flow_routes(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    cost: Cost | None = None,
    *,
    behind_folded: bool = False,
) -> Generator[Progress, None, Scores]:
    """Score every edge by the share of its destination's stream that its source brings.

    Args:
        anatomy: Of the model.
        batches: The pairs, of which the clean prompts are run; their weights make the mean.
        cost: Counts the runs.
        behind_folded: As with folded norms and value biases and centred writing weights.
    """
    graph, cost = anatomy.graph, cost or Cost()
    edges = torch.zeros(graph.sources, graph.destinations, dtype=torch.float64)
    done, total = 0, sum(len(batch.rows) for batch in batches)
    size = torch.empty((), dtype=anatomy.dtype).element_size()
    most = max(1, CHUNK_BYTES // (2 * graph.sources * graph.width * size))
    for batch in batches:
        seen, outputs = run(anatomy, batch.clean)
        outputs = folded(anatomy, outputs) if behind_folded else outputs
        cost.forwards += len(batch.rows)
        flat, tokens = outputs.flat(), batch.clean.shape[1]
        weights = (batch.weights / tokens).repeat_interleave(tokens).to(anatomy.dtype)
        for start in range(0, batch.clean.numel(), most):
            piece = slice(start, min(start + most, batch.clean.numel()))
            table = spread(anatomy, flat, piece)
            edges += _shares(anatomy, table, seen, piece, weights[piece], centred=flat.centred)
        done += len(batch.rows)
        yield Progress(stage="attribution", done=done, total=total)
    return Scores(edges=edges)


def _shares(
    anatomy: Anatomy,
    table: Tensor,
    seen: Seen,
    piece: slice,
    weights: Tensor,
    *,
    centred: bool,
) -> Float[Tensor, "sources destinations"]:
    """The weighted sum over a chunk's tokens."""
    graph = anatomy.graph
    found = torch.zeros(graph.sources, graph.destinations, dtype=torch.float64)

    def share(stream: Tensor, limit: int) -> Tensor:
        x = stream.flatten(0, 1)[piece].to(table.dtype)
        x = x - x.mean(-1, keepdim=True) if centred else x
        closer = x.abs().sum(-1) - (x - table[:limit]).abs().sum(-1)
        closer = closer.clamp_min(0)
        total = closer.sum(0)
        # No source comes closer: nobody has a share.
        return ((closer / total.where(total > 0, 1)) @ weights).cpu().double()

    for layer in range(graph.layers):
        limit = graph.before(layer)
        shares = share(seen.attention_in[layer], limit)
        found[:limit, graph.into_heads(layer)] = shares[:, None]
        limit = graph.read_by_mlp(layer)
        found[:limit, graph.into_mlp(layer)] = share(seen.mlp_in[layer], limit)
    found[:, graph.logits] = share(seen.last, graph.sources)
    return found
