"""Where each feature of a dictionary is most active in a set of texts; memory is bounded.

Per feature the best `keep` texts are kept as numbers (value, text, token), not the codes: a text is
read again when its record is asked for. Marks of the tokenizer ([BOS], ...) do not count.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.hosted import HostedModel
from models.progress import Progress
from steerers.dictionary import Dictionary
from steerers.errors import TooFewTexts
from steerers.lens import language_of
from steerers.streams import Texts, read

_CODE_BYTES = 128 * 2**20
"""Codes of one forward in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Activations:
    """What was seen of every feature; rows that were never filled have the value 0.

    Attributes:
        values: Activation of the most active token of each kept text, largest first.
        texts: Their places among the texts that were read.
        positions: Of the token in its text.
        ids: Of the token.
        density: Share of tokens at which the feature is active.
        tokens: How many tokens counted.
        cut: Where longer texts were cut.
    """

    values: Float[Tensor, "features keep"]
    texts: Int[Tensor, "features keep"]
    positions: Int[Tensor, "features keep"]
    ids: Int[Tensor, "features keep"]
    density: Float[Tensor, " features"]
    tokens: int
    cut: int

    def most_active(self, feature: int) -> list[int]:
        """The id of the most active token in each text, the most activating text first."""
        there = self.values[feature] > 0
        return self.ids[feature][there].tolist()

    def max_activation(self, feature: int) -> float:
        """The largest activation that was seen; 0 if there was none."""
        return float(self.values[feature, 0])


def collect(
    hosted: HostedModel,
    dictionary: Dictionary,
    texts: Sequence[str],
    *,
    keep: int = 100,
    tokens: int = 128,
) -> Generator[Progress, None, Activations]:
    """Read all texts and keep, per feature, where it was most active.

    Args:
        hosted: A model that speaks.
        dictionary: Of one of its streams.
        texts: Sentences or longer.
        keep: Texts per feature.
        tokens: Where longer texts are cut.

    Raises:
        TooFewTexts: No token counts.
        UnknownSite, WrongDictionary: The dictionary does not fit.
    """
    dictionary.check(hosted)
    kept = _Kept(dictionary.features, keep)
    at_most = max(tokens, _CODE_BYTES // (4 * dictionary.features))
    done = 0
    for some in read(hosted, texts, [dictionary.site], tokens, at_most):
        kept.see(some, _codes(dictionary, some))
        done += len(some.index)
        yield Progress(stage="activations", done=done, total=len(texts))
    if not kept.tokens:
        raise TooFewTexts("No token of the texts counts.")
    return kept.told(tokens)


@torch.inference_mode()
def _codes(dictionary: Dictionary, some: Texts) -> Float[Tensor, "rows tokens features"]:
    """Zero where no token is meant."""
    stream = some.streams[dictionary.site].to(dictionary.decoder.device)
    return dictionary.encode(stream).cpu() * some.meant[..., None]


class _Kept:
    """The best texts of each feature so far."""

    def __init__(self, features: int, keep: int) -> None:
        self.values = torch.zeros(features, keep)
        self.found = torch.zeros(features, keep, 3, dtype=torch.int32)
        self.active = torch.zeros(features, dtype=torch.long)
        self.tokens = 0

    def see(self, some: Texts, codes: Float[Tensor, "rows tokens features"]) -> None:
        """Merge some texts: of each text only its most active token can enter."""
        keep = self.values.shape[1]
        self.active += (codes > 0).sum((0, 1))
        self.tokens += int(some.meant.sum())
        values, positions = codes.max(1)
        index = torch.tensor(some.index)[:, None].expand_as(positions)
        found = torch.stack([index, positions, some.ids.gather(1, positions)], dim=-1).int()
        both = torch.cat([self.values, values.mT], dim=1)
        # Stable: of equal values the text that was read first stays in front.
        self.values, order = both.sort(dim=1, descending=True, stable=True)
        self.values, order = self.values[:, :keep].clone(), order[:, :keep, None]
        together = torch.cat([self.found, found.transpose(0, 1)], dim=1)
        self.found = together.gather(1, order.expand(-1, -1, 3))

    def told(self, cut: int) -> Activations:
        """What was kept."""
        texts, positions, ids = self.found.unbind(-1)
        return Activations(
            values=self.values,
            texts=texts,
            positions=positions,
            ids=ids,
            density=self.active / self.tokens,
            tokens=self.tokens,
            cut=cut,
        )


def record(
    hosted: HostedModel,
    dictionary: Dictionary,
    found: Activations,
    feature: int,
    texts: Sequence[str],
    at_most: int = 20,
) -> dict[str, Any]:
    """One feature's record in Neuronpedia's shape, read again from the same texts."""
    there: list[int] = found.texts[feature][found.values[feature] > 0][:at_most].tolist()
    chosen = [texts[i] for i in there]
    sentences: dict[int, dict[str, Any]] = {}
    room = found.cut * max(1, len(chosen))
    for some in read(hosted, chosen, [dictionary.site], found.cut, room):
        codes = _codes(dictionary, some)[..., feature]
        for row, place in enumerate(some.index):
            sentences[place] = _sentence(hosted, some, row, codes[row])
    return {"activations": [sentences[i] for i in sorted(sentences)]}


def _sentence(
    hosted: HostedModel, some: Texts, row: int, codes: Float[Tensor, " tokens"]
) -> dict[str, Any]:
    meant = some.meant[row]
    ids, values = some.ids[row][meant].tolist(), codes[meant].tolist()
    largest = max(range(len(values)), key=values.__getitem__)
    family = language_of(hosted)
    return {
        "tokens": [family.detokenize(hosted, [i], special=True) for i in ids],
        "ids": ids,
        "values": values,
        "maxValue": values[largest],
        "maxValueTokenIndex": largest,
    }
