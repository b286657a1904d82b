"""One forward of a prompt that serves every layer: keys and values, and what its last token says.

Attention is causal, so whatever is done to the last token leaves the tokens before it alone: only
the last position runs again, through the layers above, for as many changed copies as one likes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.hosted import HostedModel
from models.patch import Patch
from models.site import Site
from models.slot_cache import PrefixCache
from steerers.errors import NothingToSteer
from steerers.lens import language_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompted:
    """A prompt that was read once.

    Attributes:
        ids: Its tokens, the tokenizer's own marks included.
        cache: Keys and values of all tokens but the last, of every layer.
        streams: Per site what passed it, (tokens, d).
        logits: Of the last token, soft-cap included, in float32.
    """

    hosted: HostedModel
    ids: tuple[int, ...]
    cache: PrefixCache
    streams: Mapping[str, Float[Tensor, "tokens d"]]
    logits: Float[Tensor, " vocab"]

    def last(self, site: str) -> Float[Tensor, " d"]:
        """The last token of the stream at the site, as it is before anything is changed."""
        return self.streams[site][-1]

    def ended(self, site: str, tokens: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """What leaves the last layer if the last token were each of these at the site."""
        family, first = language_of(self.hosted), _above(site)
        stream = family.run_layers(self.hosted, tokens[:, None], first, self.cache)
        return stream[:, 0]


@torch.inference_mode()
def prompted(
    hosted: HostedModel, ids: Sequence[int], sites: Sequence[str], patch: Patch | None = None
) -> Prompted:
    """Read a prompt once and keep what passed the sites.

    Args:
        hosted: A model that speaks.
        ids: The prompt.
        sites: Streams to keep.
        patch: What the prompt is read under, at explicit positions; None for nothing.

    Raises:
        NothingToSteer: The prompt is empty.
    """
    if not ids:
        raise NothingToSteer("The prompt has no tokens.")
    family = language_of(hosted)
    cache = family.new_cache(hosted, 1, len(ids))
    row = torch.tensor([list(ids)], device=hosted.device)
    with hosted.planned([patch or Patch()]), hosted.captured(*sites) as seen:
        logits = family.step(hosted, row, cache, [0], [0])
    return Prompted(
        hosted=hosted,
        ids=tuple(ids),
        cache=PrefixCache(cache.copy_prefix(0, len(ids) - 1)),
        streams={site: seen[site][0][0] for site in sites},
        logits=logits[0],
    )


def _above(site: str) -> int:
    """The first layer above a stream site."""
    block = Site.parse(site).block
    return 0 if block is None else block + 1
