"""Logit lens: the tokens that a feature's decoder row promotes and suppresses.

K(f) = the k largest entries of lm_head(final_norm(d_f)): the model's own gain, no b_dec, no final
soft-cap (it is monotone). Whole rows of logits exist for one tile of features at a time.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.errors import MethodNotApplicable
from models.hosted import HostedModel
from models.language import Language
from models.progress import Progress
from steerers.dictionary import Dictionary

TOKENS = 20
TILE_BYTES = 256 * 2**20
"""Logits of one tile in float32: 256 features of a vocabulary of 256k."""
_BLOCK = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class LensTokens:
    """What the lens says of some features; largest first, of the suppressed smallest first."""

    features: Int[Tensor, " n"]
    ids: Int[Tensor, "n k"]
    values: Float[Tensor, "n k"]
    low_ids: Int[Tensor, "n k"]
    low_values: Float[Tensor, "n k"]

    @staticmethod
    def joined(parts: "Sequence[LensTokens]") -> "LensTokens":
        """The parts one behind the other."""
        names = ("features", "ids", "values", "low_ids", "low_values")
        return LensTokens(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})


def language_of(hosted: HostedModel, method: str = "sae") -> Language:
    """The model's family, as one that speaks; MethodNotApplicable with its reason otherwise."""
    family = hosted.family
    family.check_method(method)
    if not isinstance(family, Language):
        raise MethodNotApplicable(method, family.title, "it does not continue texts.")
    return family


def lens_logits(hosted: HostedModel, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
    """lm_head(final_norm(d_f)) of decoder rows, without the final soft-cap."""
    there = rows.to(device=hosted.device, dtype=hosted.dtype)
    return language_of(hosted).unembed(hosted, there)


@torch.inference_mode()
def lens(
    hosted: HostedModel, dictionary: Dictionary, features: Sequence[int], k: int = TOKENS
) -> LensTokens:
    """The k most promoted and most suppressed tokens of each feature, tile by tile."""
    chosen = torch.tensor(features, dtype=torch.long)
    parts = []
    for tile in chosen.split(tile_rows(hosted)):
        logits = lens_logits(hosted, dictionary.decoder[tile.to(dictionary.decoder.device)])
        (values, ids), (low_values, low_ids) = top(logits, k), bottom(logits, k)
        parts.append(
            LensTokens(
                features=tile,
                ids=ids.cpu(),
                values=values.float().cpu(),
                low_ids=low_ids.cpu(),
                low_values=low_values.float().cpu(),
            )
        )
    return LensTokens.joined(parts)


def lens_of_all(
    hosted: HostedModel, dictionary: Dictionary, k: int = TOKENS
) -> Generator[Progress, None, LensTokens]:
    """The same for the whole dictionary, with progress: 2 k numbers per feature are kept."""
    parts, rows = [], tile_rows(hosted)
    for start in range(0, dictionary.features, rows):
        end = min(start + rows, dictionary.features)
        parts.append(lens(hosted, dictionary, range(start, end), k))
        yield Progress(stage="lens", done=end, total=dictionary.features)
    return LensTokens.joined(parts)


def tile_rows(hosted: HostedModel) -> int:
    """How many rows of logits fit into a tile."""
    return max(1, TILE_BYTES // (4 * language_of(hosted).vocab_size(hosted)))


def top(
    values: Float[Tensor, "n vocab"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest of each row and where they are, largest first."""
    return _extreme(values, k, largest=True)


def bottom(
    values: Float[Tensor, "n vocab"], k: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k smallest of each row and where they are, smallest first."""
    return _extreme(values, k, largest=False)


def _extreme(values: Tensor, k: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The k extreme ones lie in the k blocks with the most extreme best: a tenth of the time."""
    n, vocabulary = values.shape
    k = min(k, vocabulary)
    whole = vocabulary // _BLOCK * _BLOCK
    if whole // _BLOCK <= k:
        found = values.topk(k, largest=largest)
        return found.values, found.indices
    blocks = values[:, :whole].unflatten(1, (-1, _BLOCK))
    best = (blocks.amax(-1) if largest else blocks.amin(-1)).topk(k, largest=largest).indices
    inside = torch.arange(_BLOCK, device=values.device)
    ids = (best[..., None] * _BLOCK + inside).flatten(1)
    rest = torch.arange(whole, vocabulary, device=values.device).expand(n, -1)
    ids = torch.cat([ids, rest], dim=1).sort(dim=1).values
    found = values.gather(1, ids).topk(k, largest=largest)
    return found.values, ids.gather(1, found.indices)


@dataclass(frozen=True, eq=False)
class LensIndex:
    """Lens token -> features: the lens turned around, as two sorted columns."""

    tokens: Int[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    places: Int[Tensor, " entries"]

    @classmethod
    def of(cls, features: Int[Tensor, " n"], ids: Int[Tensor, "n k"]) -> "LensIndex":
        """From the k tokens of each feature."""
        k = ids.shape[1]
        tokens, order = ids.flatten().sort(stable=True)
        return cls(tokens, features[order // k], order % k)

    def find(self, token: int) -> list[tuple[int, int]]:
        """(feature, place in its lens) of every feature with that token, best place first."""
        asked = torch.tensor([token], dtype=self.tokens.dtype)
        start = int(torch.searchsorted(self.tokens, asked))
        end = int(torch.searchsorted(self.tokens, asked, right=True))
        found = zip(self.features[start:end].tolist(), self.places[start:end].tolist(), strict=True)
        return sorted(found, key=lambda pair: (pair[1], pair[0]))
