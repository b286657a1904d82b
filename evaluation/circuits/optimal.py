"""Optimal ablation: for every source the vector that hurts the model least in its place.

Li and Janson 2024: the vector replaces the source's output at every token and minimises the
cross-entropy of the prompt's next tokens. It starts at the source's mean; the reference starts at
the sum over a step's prompts and tokens, averaged over steps only (`from_sums`). Sources are
independent problems; some of them share a forward, a block of rows each.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.batches import Batch
from evaluation.circuits.passes import Replacing, forward
from evaluation.circuits.points import Cost
from evaluation.circuits.replacements import mean_vectors
from models.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How vectors are learned.

    Attributes:
        rate: Of Adam.
        steps: At most, for each source.
        check: Steps between two looks at the loss.
        patience: Looks without a gain before a source stops.
        rows: Prompts of a step, of one length.
        sources: That share a forward.
    """

    rate: float = 1e-3
    steps: int = 1000
    check: int = 10
    patience: int = 3
    rows: int = 8
    sources: int = 8


def optimal_vectors(
    anatomy: Anatomy,
    batches: Sequence[Batch],
    how: Learning | None = None,
    cost: Cost | None = None,
    *,
    from_sums: bool = False,
) -> Generator[Progress, None, Float[Tensor, "sources d"]]:
    """Learn one vector per source from the clean prompts.

    Args:
        anatomy: Of the model.
        batches: The prompts; steps take them in turn.
        how: Rate, steps and when to stop.
        cost: Counts the runs.
        from_sums: Start where the reference does.
    """
    how, cost, graph = how or Learning(), cost or Cost(), anatomy.graph
    vectors = mean_vectors(anatomy, batches)
    cost.forwards += sum(len(batch.rows) for batch in batches)
    prompts = [
        batch.clean[i : i + how.rows]
        for batch in batches
        for i in range(0, len(batch.rows), how.rows)
    ]
    if from_sums:
        vectors *= sum(ids.numel() for ids in prompts) / len(prompts)
    for start in range(0, graph.sources, how.sources):
        some = list(range(start, min(start + how.sources, graph.sources)))
        vectors[some] = _learn(anatomy, some, vectors[some], prompts, how, cost)
        yield Progress(stage="optimal ablation", done=some[-1] + 1, total=graph.sources)
    return vectors


def _learn(
    anatomy: Anatomy,
    sources: list[int],
    start: Tensor,
    prompts: Sequence[Tensor],
    how: Learning,
    cost: Cost,
) -> Tensor:
    vectors = start.clone().requires_grad_()
    adam = torch.optim.Adam([vectors], lr=how.rate)
    kept, best = start.clone(), torch.full((len(sources),), torch.inf, device=start.device)
    waited = torch.zeros(len(sources), dtype=torch.long, device=start.device)
    recent = torch.zeros_like(best)
    for step in range(how.steps):
        ids = prompts[step % len(prompts)]
        losses = prompt_losses(anatomy, sources, vectors, ids)
        cost.forwards += len(sources) * len(ids)
        cost.backwards += len(sources) * len(ids)
        recent += losses.detach() / how.check
        (vectors.grad,) = torch.autograd.grad(losses.sum(), [vectors])
        adam.step()
        if (step + 1) % how.check:
            continue
        gained = recent < best
        going = waited < how.patience
        kept[going & gained] = vectors.detach()[going & gained]
        best = torch.where(going & gained, recent, best)
        waited = torch.where(gained & going, 0, waited + 1)
        recent = torch.zeros_like(recent)
        if bool((waited >= how.patience).all()):
            break
    return kept


def prompt_losses(
    anatomy: Anatomy,
    sources: Sequence[int],
    vectors: Float[Tensor, "sources d"],
    ids: Tensor,
) -> Float[Tensor, " sources"]:
    """The cross-entropy of next tokens with one source replaced, for each source."""
    count, rows = len(sources), len(ids)
    many = ids.repeat(count, 1)
    entering, replacing = _replaced(anatomy, sources, vectors, many, rows)
    with torch.enable_grad():
        stream = forward(anatomy, entering, replacing).last
        logits = anatomy.final_logits(stream[:, :-1])
        each = nn.functional.cross_entropy(logits.mT, many[:, 1:], reduction="none")
    return each.unflatten(0, (count, rows)).mean((1, 2))


def _replaced(
    anatomy: Anatomy, sources: Sequence[int], vectors: Tensor, many: Tensor, rows: int
) -> tuple[Tensor, Replacing]:
    """What enters layer 0, and what takes the place of outputs; a block of rows per source."""
    graph = anatomy.graph
    entering, blocks = anatomy.entering(many), _Blocks(anatomy)
    for i, source in enumerate(sources):
        block, vector = slice(i * rows, (i + 1) * rows), vectors[i].to(anatomy.hosted.dtype)
        layer = graph.layer_of(source)
        if source == 0:
            ours = entering[block] - anatomy.embedded(many[block]) + vector
            entering = torch.cat([entering[: block.start], ours, entering[block.stop :]])
        elif source == graph.mlp(layer):
            blocks.mlps.setdefault(layer, []).append((block, vector))
        else:
            head = source - graph.before(layer)
            blocks.heads.setdefault(layer, []).append((block, head, vector))
    return entering, blocks.replacing()


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Rows whose MLP, or one of whose heads, is replaced, by layer."""

    anatomy: Anatomy
    mlps: dict[int, list[tuple[slice, Tensor]]] = field(default_factory=dict)
    heads: dict[int, list[tuple[slice, int, Tensor]]] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def replacing(self) -> Replacing:
        return Replacing(
            heads={layer: partial(self._keep, layer) for layer in self.heads},
            sums={layer: partial(self._sum, layer) for layer in self.heads},
            mlps={layer: partial(self._mlp, layer) for layer in self.mlps},
        )

    def _keep(self, layer: int, heads: Tensor) -> Tensor:
        self.values[layer] = heads.unflatten(-1, (self.anatomy.graph.heads, -1))
        return heads

    def _sum(self, layer: int, output: Tensor) -> Tensor:
        found, weight = output.clone(), self.anatomy.writing(layer)
        for block, head, vector in self.heads[layer]:
            own = self.values[layer][block, :, head] @ weight[head]
            found[block] = output[block] - own + vector
        return found

    def _mlp(self, layer: int, output: Tensor) -> Tensor:
        found = output.clone()
        for block, vector in self.mlps[layer]:
            found[block] = vector
        return found
