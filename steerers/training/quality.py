"""How good an SAE is on texts that it did not learn from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.hosted import HostedModel
from models.site import Site
from steerers.dictionary import Dictionary, Fit
from steerers.lens import language_of
from steerers.streams import Texts, read
from steerers.training.buffer import streams_of

_FORWARD_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a card says.

    Attributes:
        fit: Variance unexplained, L0, dead features.
        loss: The model's cross-entropy per token, in nats.
        spliced: The same where the SAE's output stands for the stream.
        ablated: The same where zeros stand for it.
    """

    fit: Fit
    loss: float
    spliced: float
    ablated: float

    @property
    def explained(self) -> float:
        """Explained variance, 1 - FVU."""
        return 1 - self.fit.fvu

    @property
    def recovered(self) -> float:
        """Share of the loss between zeros and the stream itself that the SAE gives back."""
        return (self.ablated - self.spliced) / (self.ablated - self.loss)


def measure(
    hosted: HostedModel, dictionary: Dictionary, texts: Sequence[str], text_tokens: int
) -> Quality:
    """Fit and spliced loss on the texts; the tokenizer's marks are left as they are."""
    site = dictionary.site
    streams = streams_of(hosted, texts, [site], text_tokens)
    fit = dictionary.fit(part[site] for part in streams if len(part[site]))
    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    for some in read(hosted, texts, [site], text_tokens, max(_FORWARD_TOKENS, text_tokens)):
        stream = some.streams[site]
        meant = some.meant[..., None]
        rebuilt = dictionary.decode(dictionary.encode(stream), stream).to(stream.dtype)
        for i, there in enumerate((stream, rebuilt, torch.zeros_like(stream))):
            sums[i] += _loss(hosted, site, torch.where(meant, there, stream), some)
        tokens += int(some.meant[:, 1:].sum())
    loss, spliced, ablated = (sums / max(tokens, 1)).tolist()
    return Quality(fit=fit, loss=loss, spliced=spliced, ablated=ablated)


@torch.inference_mode()
def _loss(
    hosted: HostedModel, site: str, stream: Float[Tensor, "rows tokens d"], some: Texts
) -> float:
    """Summed cross-entropy of the tokens that count, given what stands at the site."""
    family, place = language_of(hosted), Site.parse(site).block
    stream = family.run_layers(hosted, stream, 0 if place is None else place + 1)
    logits = family.soft_cap(hosted, family.unembed(hosted, stream[:, :-1]))
    return _summed(logits, some.ids[:, 1:], some.meant[:, 1:])


def _summed(
    logits: Float[Tensor, "rows tokens vocab"],
    ids: Int[Tensor, "rows tokens"],
    meant: Bool[Tensor, "rows tokens"],
) -> float:
    there = ids.to(logits.device)
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), there, reduction="none")
    return float(each[meant.to(logits.device)].double().sum())
