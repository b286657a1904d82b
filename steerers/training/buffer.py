"""Activations of many texts, shuffled in bounded memory.

Tokens of one text resemble each other; a batch should hold tokens of many. A buffer is filled,
shuffled and half emptied, again and again, so no more than its size is ever held.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from models.hosted import HostedModel
from steerers.streams import read
from steerers.training.recipe import Recipe

TEXTS_TOGETHER = 64
_FORWARD_TOKENS = 4096


def streams_of(
    hosted: HostedModel, texts: Iterable[str], sites: Sequence[str], text_tokens: int
) -> Iterator[dict[str, Tensor]]:
    """Per forward, by site, (tokens, d) of the tokens that count; marks do not."""
    told = iter(texts)
    while some := list(islice(told, TEXTS_TOGETHER)):
        for part in read(hosted, some, sites, text_tokens, max(_FORWARD_TOKENS, text_tokens)):
            yield {site: part.streams[site][part.meant].float() for site in sites}


def endless(texts: Callable[[], Iterable[str]], skip: int) -> Iterator[str]:
    """The texts behind the first `skip`, again and again; nothing if there are none."""
    while True:
        found = False
        for text in islice(texts(), skip, None):
            found = True
            yield text
        if not found:
            return


class Buffer:
    """A shuffled window over streams.

    Args:
        streams: Parts of any length, the sites the same in each.
        recipe: Its `buffer` tokens are held, or all of a shorter training's, and those of one part.
    """

    def __init__(self, streams: Iterator[dict[str, Tensor]], recipe: Recipe) -> None:
        self._streams = streams
        self._size = max(min(recipe.buffer, recipe.tokens), 2 * recipe.batch)
        self._batch = recipe.batch
        self._held: dict[str, Tensor] = {}
        self._shuffle = torch.Generator().manual_seed(recipe.seed)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Full batches until the streams end."""
        while self._fill():
            half = max(self._batch, self._tokens // 2)
            while half >= self._batch and self._tokens >= self._batch:
                yield {site: held[-self._batch :].clone() for site, held in self._held.items()}
                self._held = {site: held[: -self._batch] for site, held in self._held.items()}
                half -= self._batch

    @property
    def _tokens(self) -> int:
        return len(next(iter(self._held.values()))) if self._held else 0

    def _fill(self) -> bool:
        """Fill up and shuffle; False if not one batch is left."""
        parts, tokens = [self._held] if self._held else [], self._tokens
        while tokens < self._size and (part := next(self._streams, None)) is not None:
            parts.append(part)
            tokens += len(next(iter(part.values())))
        if tokens < self._batch:
            return False
        order = torch.randperm(tokens, generator=self._shuffle)
        self._held = {
            site: torch.cat([part[site] for part in parts])[order.to(parts[0][site].device)]
            for site in parts[0]
        }
        return True
