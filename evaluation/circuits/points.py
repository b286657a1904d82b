"""The points at which attribution takes gradients: one, two, or along a way between two runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.circuits.anatomy import Anatomy
from evaluation.circuits.batches import Batch
from evaluation.circuits.contraction import Gradients
from evaluation.circuits.passes import Replacing, Seen, forward
from evaluation.circuits.written import Written


@dataclass(eq=False)
class Cost:
    """Prompts that were run, forwards and backwards."""

    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True, eq=False)
class Ends:
    """Both runs of one batch.

    Attributes:
        entering: What enters layer 0 in the clean run, and in the corrupted one.
        outputs: What the sources write in each.
    """

    batch: Batch
    entering: tuple[Tensor, Tensor]
    outputs: tuple[Written, Written]


@dataclass(frozen=True, eq=False)
class Slope:
    """Takes gradients of a batch's loss, minus the weighted sum of its margins."""

    anatomy: Anatomy
    batch: Batch
    cost: Cost = field(default_factory=Cost)

    def at(
        self, entering: Float[Tensor, "rows tokens d"], replacing: Replacing | None = None
    ) -> Gradients:
        """The gradients of the forward that begins with this."""
        return self.seen_at(entering, replacing)[1]

    def seen_at(
        self, entering: Float[Tensor, "rows tokens d"], replacing: Replacing | None = None
    ) -> tuple[Seen, Gradients]:
        """The same, and the forward itself."""
        with torch.enable_grad():
            leaf = entering.detach().requires_grad_()
            seen = forward(self.anatomy, leaf, replacing)
            final = seen.last[:, -1]
            normed = self.anatomy.decoder.norm(final)
            logits = self.anatomy.family.soft_cap(
                self.anatomy.hosted, self.anatomy.decoder.head(normed).to(self.anatomy.dtype)
            )
            loss = -(self.batch.weights * self.batch.margins(logits)).sum()
            wanted = [*(t for reads in seen.reads for t in reads), *seen.mlp_normed, normed]
            found = torch.autograd.grad(loss, wanted, materialize_grads=True)
        self.cost.forwards += len(leaf)
        self.cost.backwards += len(leaf)
        return seen, self._gradients(seen, found)

    def _gradients(self, seen: Seen, found: Sequence[Tensor]) -> Gradients:
        graph, each = self.anatomy.graph, len(seen.reads[0])
        reads = [found[i * each : (i + 1) * each] for i in range(graph.layers)]

        def by_head(of: Sequence[Tensor]) -> Tensor:
            whole = (of[0] if len(of) == 1 else torch.cat(tuple(of), -1)).flatten(0, 1)
            return whole.view(len(whole), 3, graph.heads, -1)

        def at_last(of: Tensor) -> Tensor:
            whole = torch.zeros_like(seen.last)
            whole[:, -1] = of
            return whole.flatten(0, 1)

        return Gradients(
            attention_in=tuple(t.detach().flatten(0, 1) for t in seen.attention_in),
            mlp_in=tuple(t.detach().flatten(0, 1) for t in seen.mlp_in),
            last_in=seen.last.detach().flatten(0, 1),
            reads=tuple(by_head(of) for of in reads),
            mlp_normed=tuple(t.flatten(0, 1) for t in found[graph.layers * each : -1]),
            last_normed=at_last(found[-1]),
        )


def input_points(
    slope: Slope, ends: Ends, steps: int, shares: Sequence[int]
) -> Iterator[Gradients]:
    """EAP-IG-inputs: the token embeddings go from the corrupted ones to the clean ones.

    What enters layer 0 is linear in them and positions cancel, so it goes instead.
    """
    clean, corrupted = ends.entering
    for k in shares:
        yield slope.at(corrupted + (k / steps) * (clean - corrupted))


def activation_points(
    slope: Slope, ends: Ends, steps: int, *, detached: bool = False
) -> Iterator[Iterator[Gradients]]:
    """EAP-IG-activations: each group in turn is held between both runs; the rest follows.

    Groups: the embedding, the heads of each layer, the MLP of each layer. All edges are credited
    at every point. `detached`: at points where a rotary model's embedding is held, nothing flows to
    the reads of layer 0.
    """
    clean, corrupted = ends.outputs
    found = input_points(slope, ends, steps, range(1, steps + 1))
    rotary = slope.anatomy.decoder.places is None
    yield map(_without_first, found) if detached and rotary else found
    for layer in range(slope.anatomy.graph.layers):
        for kind in ("heads", "mlps"):
            a, b = getattr(clean, kind)[layer], getattr(corrupted, kind)[layer]
            held = [(k / steps) * a + (1 - k / steps) * b for k in range(1, steps + 1)]
            yield (
                slope.at(ends.entering[0], Replacing(**{kind: {layer: lambda _o, h=h: h}}))
                for h in held
            )


def _without_first(point: Gradients) -> Gradients:
    reads = (torch.zeros_like(point.reads[0]), *point.reads[1:])
    return Gradients(**{**vars(point), "reads": reads})
