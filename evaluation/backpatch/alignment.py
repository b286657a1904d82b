"""Do visual tokens come to stand where the words for the same thing stand, and in which layer?

The paper's explanation of back-patching (Nikankin et al. 2025) is that visual tokens become like
their textual counterparts in late layers only, too late for the layers that work on them. Here an
example tells the same in a picture and in words. The states of all visual tokens behind decoder
layer l, and of the description's tokens behind layer m of another pass, are freed of their mean
over all examples (each form and layer its own) and brought to length one; the alignment of a
picture with a description is the mean cosine over all pairs of a visual token and a word. It counts
only against others: is a picture nearer to its own description than to those of other pictures? A
half of the time it would be by chance, whatever directions all pictures and all words share.

Pictures and descriptions come before the question in their prompts, so where a decoder is causal
they do not know what is asked.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evaluation.backpatch.example import Case, Example, prepare
from evaluation.backpatch.search import LEAST
from evaluation.backpatch.shares import Share
from evaluation.backpatch.sweep import Sweep
from evaluation.errors import UnusableExamples
from evaluation.protocol import bootstrap
from models.hosted import HostedModel
from models.progress import Progress

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How alike pictures and their descriptions are, by layer.

    Attributes:
        own: Mean cosine of a picture with its own description, [its layer][layer of the words].
        others: The same with the descriptions of other pictures.
        nearer: Share of other descriptions that are farther from a picture than its own is.
        same_layer: `nearer` where both are in one layer, with its interval over descriptions.
        last_layer: `nearer` to the words behind the last layer.
        best_layer: Per layer of the picture the layer of the words that is nearest.
        examples: In both forms.
    """

    own: Table
    others: Table
    nearer: Table
    same_layer: tuple[Share, ...]
    last_layer: tuple[Share, ...]
    best_layer: tuple[int, ...]
    examples: int

    @property
    def rise(self) -> float:
        """How much nearer the nearest of the later half's layers is than what enters layer 1."""
        half = len(self.same_layer) // 2
        return max(share.value for share in self.same_layer[half:]) - self.same_layer[0].value


def align(
    hosted: HostedModel, examples: Sequence[Example], seed: int = 0
) -> Generator[Progress, None, Alignment]:
    """Compare all layers of all pictures with all layers of all descriptions.

    Args:
        hosted: The model; nobody else may use it meanwhile.
        examples: Those that tell their picture in words.
        seed: Of the bootstrap.

    Raises:
        UnusableExamples: Fewer than `LEAST` can be used, or all tell the same.
    """
    cases = prepare(hosted, examples, "exact")
    told = {case.id: case for case in cases.text}
    pairs = [(case, told[case.id]) for case in cases.image if case.id in told]
    words = {example.id: example.description for example in examples}
    if len(pairs) < LEAST:
        raise UnusableExamples(f"{len(pairs)} examples in pictures and in words are too few.")
    sweep, seen, read = Sweep(hosted, "exact"), [], []
    for done, (image, text) in enumerate(pairs):
        seen.append(states(sweep, image))
        read.append(states(sweep, text))
        yield Progress(stage="alignment", done=done + 1, total=len(pairs))
    alike = cosines(seen, read)
    names = [words[image.id] or image.id for image, _ in pairs]
    if len(set(names)) < LEAST:
        raise UnusableExamples("Nearly all descriptions say the same.")
    return _alignment(alike, names, seed)


def states(sweep: Sweep, case: Case) -> Float[Tensor, "layers columns d"]:
    """Behind every layer, at the columns of the picture or of its description."""
    clean = sweep.clean(case)
    columns = [column - clean.first for column in case.columns]
    return torch.stack([stream[0, columns].float().cpu() for stream in clean.streams])


def cosines(
    seen: Sequence[Float[Tensor, "layers _ d"]], read: Sequence[Float[Tensor, "layers _ d"]]
) -> Float[Tensor, "layers layers examples examples"]:
    """Mean cosine over pairs of tokens, [layer of pictures, of words, picture, description]."""
    return torch.einsum("lid,mjd->lmij", _pooled(seen), _pooled(read))


def _pooled(tokens: Sequence[Tensor]) -> Float[Tensor, "layers examples d"]:
    """Each example's mean of centred unit vectors: their products are mean cosines of tokens."""
    mean = torch.cat(list(tokens), dim=1).mean(dim=1, keepdim=True)
    units = [torch.nn.functional.normalize(some - mean, dim=-1) for some in tokens]
    return torch.stack([some.mean(dim=1) for some in units], dim=1)


def _alignment(alike: Tensor, names: Sequence[str], seed: int) -> Alignment:
    other = torch.tensor([[a != b for b in names] for a in names])
    own = alike.diagonal(dim1=2, dim2=3)
    weights = other / other.sum(dim=1, keepdim=True)
    closer = (own[..., None] > alike).float() + 0.5 * (own[..., None] == alike)
    nearer = (closer * weights).sum(dim=-1)  # (layers, layers, pictures)
    layers = nearer.shape[0]

    def shares(columns: Sequence[int]) -> tuple[Share, ...]:
        return tuple(_share(nearer[of, to], names, seed) for of, to in enumerate(columns))

    return Alignment(
        own=_table(own.mean(dim=-1)),
        others=_table((alike * weights).sum(dim=-1).mean(dim=-1)),
        nearer=_table(nearer.mean(dim=-1)),
        same_layer=shares(range(layers)),
        last_layer=shares([layers - 1] * layers),
        best_layer=tuple(nearer.mean(dim=-1).argmax(dim=1).tolist()),
        examples=len(names),
    )


def _share(values: Float[Tensor, " pictures"], names: Sequence[str], seed: int) -> Share:
    """Their mean; what is told alike stands and falls together."""
    low, high = bootstrap(names, values.numpy(), seed=seed)
    return Share(
        value=float(values.mean()),
        low=low,
        high=high,
        examples=len(names),
        clusters=len(set(names)),
    )


def _table(values: Float[Tensor, "layers layers"]) -> Table:
    return tuple(tuple(row) for row in values.tolist())
