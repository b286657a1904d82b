"""What stands around the tokens at which each feature was most active: a second reading.

`steerers.activations` keeps where each feature was strongest; here every text is read once more,
and of each of those places a window of tokens with the feature's activations is kept, as numbers.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.hosted import HostedModel
from models.progress import Progress
from steerers.activations import Activations
from steerers.dictionary import Dictionary
from steerers.lens import language_of
from steerers.streams import Texts, read

BEFORE, AFTER = 12, 6
"""Tokens in front of the strongest one, and behind it."""
_CODE_BYTES = 128 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Around each place: -1 for ids outside the text.

    Attributes:
        ids: Tokens; the strongest is the one at `BEFORE`.
        values: The feature's activations at them.
    """

    ids: Int[Tensor, "features keep window"]
    values: Float[Tensor, "features keep window"]

    def of(self, hosted: HostedModel, feature: int) -> list[dict[str, Any]]:
        """A feature's snippets in the shape of Neuronpedia's activations, the strongest first."""
        told = []
        for ids, values in zip(self.ids[feature], self.values[feature], strict=True):
            there = ids >= 0
            if not bool(there.any()):
                break
            kept = ids[there].tolist()
            told.append(
                {
                    "tokens": [spelled(hosted, i) for i in kept],
                    "ids": kept,
                    "values": [round(v, 5) for v in values[there].tolist()],
                    "maxValue": round(float(values[BEFORE]), 5),
                    "maxValueTokenIndex": int(there[:BEFORE].sum()),
                }
            )
        return told


def windows(
    hosted: HostedModel,
    dictionary: Dictionary,
    texts: Sequence[str],
    found: Activations,
    *,
    keep: int = 10,
    tokens: int = 128,
) -> Generator[Progress, None, Windows]:
    """Read the texts again and keep what stands around the best `keep` places of each feature.

    Args:
        hosted: A model that speaks.
        dictionary: Of one of its streams.
        texts: The same as those that `found` was collected from, in the same order.
        found: Where each feature was strongest.
        keep: Places per feature.
        tokens: Where longer texts were cut.
    """
    keep = min(keep, found.values.shape[1])
    shape = (dictionary.features, keep, BEFORE + 1 + AFTER)
    ids, values = torch.full(shape, -1, dtype=torch.int32), torch.zeros(shape)
    feature, place = (found.values[:, :keep] > 0).nonzero(as_tuple=True)
    text, position = found.texts[feature, place], found.positions[feature, place]
    at_most, done = max(tokens, _CODE_BYTES // (4 * dictionary.features)), 0
    for some in read(hosted, texts, [dictionary.site], tokens, at_most):
        row_of = torch.full((len(texts),), -1, dtype=torch.long)
        row_of[torch.tensor(some.index)] = torch.arange(len(some.index))
        here = (row_of[text] >= 0).nonzero()[:, 0]
        around = _around(dictionary, some, row_of[text[here]], position[here], feature[here])
        ids[feature[here], place[here]], values[feature[here], place[here]] = around
        done += len(some.index)
        yield Progress(stage="snippets", done=done, total=len(texts))
    return Windows(ids=ids, values=values)


@torch.inference_mode()
def _around(
    dictionary: Dictionary,
    some: Texts,
    rows: Int[Tensor, " n"],
    positions: Int[Tensor, " n"],
    features: Int[Tensor, " n"],
) -> tuple[Int[Tensor, "n window"], Float[Tensor, "n window"]]:
    """Ids and activations around each place; -1 and 0 where no token is meant."""
    stream = some.streams[dictionary.site].to(dictionary.decoder.device)
    codes = dictionary.encode(stream).cpu()
    columns = positions[:, None] + torch.arange(-BEFORE, AFTER + 1)
    inside = columns.clamp(0, some.ids.shape[1] - 1)
    meant = some.meant[rows[:, None], inside] & (columns == inside)
    ids = some.ids[rows[:, None], inside].masked_fill(~meant, -1)
    values = codes[rows[:, None], inside, features[:, None]].masked_fill(~meant, 0.0)
    return ids.int(), values


def spelled(hosted: HostedModel, token: int) -> str:
    """A token's text as it stands inside a text: some tokenizers drop the space in front of it.

    A token that is a part of a letter is spelt as U+FFFD.
    """
    family = language_of(hosted)
    front = family.tokenize(hosted, "a", special=False)[:1]
    plain = family.detokenize(hosted, [token], special=True)
    if token in family.special_ids(hosted) or not front:
        return plain
    before = family.detokenize(hosted, front)
    both = family.detokenize(hosted, [*front, token])
    return both[len(before) :] if both.startswith(before) else plain
