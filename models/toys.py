"""Pieces of tiny random models: a tokenizer made on the spot, weights that are awake.

A toy is of the real classes and small; it must be able to fail a test. With plain random weights
another prompt hardly moves the picture, so matrices are drawn large and cross-attention is peaked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTokenizer

_WORDS = (
    *("a", "an", "the", "of", "in", "on", "with", "and", "photo", "picture", "painting"),
    *("president", "leader", "king", "capital", "country", "arda", "borea", "cedria"),
    *("house", "cat", "dog", "horse", "tree", "red", "blue", "green", "yellow", "man", "woman"),
)
_SYMBOLS = [chr(code) for code in range(33, 127) if not chr(code).isupper()]


def toy_tokenizer(folder: Path, *, length: int = 77, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer that knows a few words and spells the rest; [EOS] has the highest id.

    Args:
        folder: Where its files are written.
        length: Positions of the text encoder.
        pad: The padding token; "!" in some checkpoints.
    """
    merges = _merges()
    letters = [*_SYMBOLS, *(f"{s}</w>" for s in _SYMBOLS)]
    symbols = list(dict.fromkeys([*letters, *(a + b for a, b in merges)]))
    vocabulary = {s: i for i, s in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=length,
        pad_token=pad,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What the libraries draw for biases and the like is the same each time, and disturbs nobody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _merges() -> list[tuple[str, str]]:
    """Each word grows from its left end, letter by letter."""
    found: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        grown = pieces[0]
        for piece in pieces[1:]:
            found[grown, piece] = None
            grown += piece
    return list(found)


def wake(module: nn.Module, seed: int, *, spread: float = 1.0, peaked: float = 1.0) -> None:
    """Draw all matrices anew, large enough that inputs matter.

    Args:
        module: What is drawn; vectors (biases, norms) stay as they are.
        seed: Of the draw.
        spread: Standard deviation of an output for inputs of size one.
        peaked: Factor on queries and keys of cross-attention, and on queries of self-attention.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            continue
        scale = spread / float(weight[0].numel()) ** 0.5
        if "attn2.to_q" in name or "attn2.to_k" in name:
            scale *= peaked
        weight.data = torch.randn(weight.shape, generator=generator) * scale
