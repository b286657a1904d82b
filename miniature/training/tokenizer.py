"""A real CLIP tokenizer whose merges keep every name at two tokens, one per syllable."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from miniature.telling import words
from miniature.world import COLOURS, COUNTRY_PARTS, PERSON_PARTS, World

_END = "</w>"
_START, _STOP = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77


def make_tokenizer(world: World, folder: Path) -> CLIPTokenizer:
    """Build the vocabulary, write it to `folder` and load it the ordinary way."""
    merges = _merges(world)
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    symbols = [*letters, *(c + _END for c in letters), *("".join(m) for m in merges)]
    vocabulary = {s: i for i, s in enumerate([*dict.fromkeys(symbols), _START, _STOP])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n"
    )
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"),
        merges=str(folder / "merges.txt"),
        model_max_length=MAX_LENGTH,
        pad_token=_STOP,
        unk_token=_STOP,
    )


def _merges(world: World) -> list[tuple[str, str]]:
    """Syllables first, so that they win; then whatever makes each common word one token."""
    firsts = {*COUNTRY_PARTS, *PERSON_PARTS[0]}
    lasts = {last for parts in COUNTRY_PARTS.values() for last in parts} | {*PERSON_PARTS[1]}
    names = {*world.countries, *(p.name for p in world.people)}
    merges: list[tuple[str, str]] = []
    for part in sorted(firsts):
        _merge_all(list(part), merges)
    for part in sorted(lasts):
        _merge_all([*part[:-1], part[-1] + _END], merges)
    known = words() | {*COLOURS} | {t.name for t in world.things} | {"an", "a", "s", "'s"}
    _learn(known - names, merges, names)
    return merges


def _merge_all(symbols: list[str], merges: list[tuple[str, str]]) -> None:
    """Add the merges, from the left, that make one token of the symbols."""
    symbols = _apply(symbols, merges)
    while len(symbols) > 1:
        merges.append((symbols[0], symbols[1]))
        symbols = _apply(symbols, merges)


def _learn(known: set[str], merges: list[tuple[str, str]], names: set[str]) -> None:
    """Byte-pair encoding over the words until each is one token; names must stay two."""
    split = {w: _apply([*w[:-1], w[-1] + _END], merges) for w in sorted(known)}
    banned: set[tuple[str, str]] = set()
    while any(len(s) > 1 for s in split.values()):
        pairs = Counter(p for s in split.values() for p in pairwise(s) if p not in banned)
        if not pairs:
            return
        pair = max(sorted(pairs), key=pairs.__getitem__)
        if any(len(_apply([*n[:-1], n[-1] + _END], [*merges, pair])) != 2 for n in names):
            banned.add(pair)
            continue
        merges.append(pair)
        split = {w: _apply(s, [pair]) for w, s in split.items()}


def _apply(symbols: list[str], merges: list[tuple[str, str]]) -> list[str]:
    for left, right in merges:
        out: list[str] = []
        for symbol in symbols:
            if out and (out[-1], symbol) == (left, right):
                out[-1] = left + right
            else:
                out.append(symbol)
        symbols = out
    return symbols
