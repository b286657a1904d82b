"""An evaluation's own model with an edit in its weights, for what reads weights and not streams.

Hosted weights are never merged with anything; an evaluation owns its copy. Low-rank changes alone
can be in weights: output + (x right^T) left^T is x (W + left right)^T up to rounding. The block
restores the very tensors that it found.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evaluation.errors import NotInWeights
from models.hosted import HostedModel
from models.patch import LowRank, Patch


@contextmanager
def merged(hosted: HostedModel, patch: Patch) -> Iterator[None]:
    """The model's linear layers carry the patch inside this block.

    Raises:
        NotInWeights: An operation that no weight can express.
        UnknownSite, BadPatch: The patch does not fit the model.
    """
    hosted.check(patch)
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for operation in patch:
                if not isinstance(operation, LowRank):
                    raise NotInWeights(type(operation).__name__)
                weight = _weight(hosted, operation.site)
                kept.append((weight, weight.clone()))
                left, right = (t.to(weight.device) for t in (operation.left, operation.right))
                weight += (left.double() @ right.double()).to(weight.dtype)
        yield
    finally:
        with torch.no_grad():
            for weight, before in reversed(kept):
                weight.copy_(before)


def _weight(hosted: HostedModel, site: str) -> Tensor:
    module = hosted.linears[site]
    assert isinstance(module, nn.Linear)  # noqa: S101 - such are the sites that `check` knows
    return module.weight
