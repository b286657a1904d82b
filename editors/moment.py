"""The uncentred second moment C of the keys: collected once per tower and block, kept on disk."""

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from editors.errors import BadMoment
from editors.progress import Progress
from editors.rank_one import Factor, condition, factor
from models.hosted import HostedModel
from models.text_tower import TextTower

_CUT = 60
_BATCH = 64
WARN_BELOW = 500


@dataclass(frozen=True)
class Corpus:
    """Texts whose tokens' keys are summed; all of them, in this order."""

    name: str
    texts: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the texts."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()

    @classmethod
    def read(cls, file: Path) -> "Corpus":
        """One text a line; empty lines are left out."""
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        return cls(file.name, tuple(line for line in lines if line))


@dataclass(frozen=True, eq=False)
class Moment:
    """C = sum / count for one tower and block.

    Attributes:
        total: Sum of k k^T in float64.
        count: Tokens summed: all attended ones, [BOS] and [EOS] included.
        recipe: What the sum is of: tower, site, tokenizer and corpus digests, cut.
        known_cond: The condition number, where a file tells it.
    """

    total: Float[Tensor, "inner inner"]
    count: int
    recipe: dict[str, str]
    known_cond: float | None = None

    @property
    def matrix(self) -> Float[Tensor, "inner inner"]:
        """The mean of k k^T."""
        return self.total / self.count

    @cached_property
    def factor(self) -> Factor:
        """Its Cholesky factor, computed once."""
        return factor(self.matrix)

    @cached_property
    def cond(self) -> float:
        """Condition number of what is factored, a needed ridge included: 4 s for 3072 on a core.

        Raises:
            BadMoment: Not factorable.
        """
        if self.known_cond is not None:
            return self.known_cond
        return condition(self.matrix, self.factor.ridge)

    @property
    def per_dimension(self) -> float:
        """Tokens per dimension; below 500 the sample shows in the edit."""
        return self.count / len(self.total)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of recipe and sum."""
        found = hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode())
        found.update(self.total.numpy().tobytes())
        return found.hexdigest()


class MomentStore:
    """Moments in a folder, by the digest of their recipe, and in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.kept: dict[str, Moment] = {}

    def load_or_collect(
        self, tower: TextTower, block: int, corpus: Corpus, hosted: HostedModel
    ) -> Generator[Progress, None, Moment]:
        """The moment of that block over that corpus: from memory, disk or a pass over the texts."""
        recipe = recipe_of(tower, block, corpus)
        key = key_of(recipe)
        if key not in self.kept:
            found = self._read(key, recipe, tower)
            if found is None:
                found = yield from collect(hosted, tower, block, corpus)
                self._write(key, found)
            self.kept[key] = found
        return self.kept[key]

    def _read(self, key: str, recipe: dict[str, str], tower: TextTower) -> Moment | None:
        file = None if self.folder is None else self.folder / f"{key}.safetensors"
        if file is None or not file.exists():
            return None
        try:
            with safe_open(file, "pt") as opened:
                header = json.loads((opened.metadata() or {})["header"])
                total = opened.get_tensor("sum")
        except (SafetensorError, KeyError, json.JSONDecodeError) as broken:
            raise BadMoment(f"{file.name} cannot be read: {broken}") from broken
        inner = tower.fc2(0).in_features
        if header["recipe"] != recipe:
            raise BadMoment(
                f"{file.name} is of other keys: {_differing(header['recipe'], recipe)}."
            )
        if tuple(total.shape) != (inner, inner):
            raise BadMoment(
                f"{file.name} has shape {tuple(total.shape)}; keys have {inner} numbers."
            )
        return Moment(total, int(header["count"]), recipe, header.get("cond"))

    def _write(self, key: str, moment: Moment) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {"count": moment.count, "recipe": moment.recipe}
        with suppress(BadMoment):  # the fit says so
            told["cond"] = moment.cond
        header = json.dumps(told, sort_keys=True)
        part = self.folder / f"{key}.part"
        part.write_bytes(save({"sum": moment.total.contiguous()}, metadata={"header": header}))
        part.replace(self.folder / f"{key}.safetensors")


def _differing(found: dict[str, str], wanted: dict[str, str]) -> str:
    """Each part of the recipe that differs: what the file has and what is needed."""
    pairs = [(name, str(found.get(name)), told) for name, told in wanted.items()]
    return "; ".join(f"{n} {a[:72]} instead of {b[:72]}" for n, a, b in pairs if a != b)


def recipe_of(tower: TextTower, block: int, corpus: Corpus) -> dict[str, str]:
    """What identifies a moment."""
    return {
        "tower": tower.fingerprint,
        "site": tower.fc2_site(block),
        "tokenizer": tower.tokenizer_digest,
        "corpus": corpus.digest,
        "cut": str(_CUT),
    }


def key_of(recipe: dict[str, str]) -> str:
    """By what a store keeps it: SHA-256 of the recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def collect(
    hosted: HostedModel, tower: TextTower, block: int, corpus: Corpus
) -> Generator[Progress, None, Moment]:
    """Sum k k^T over all attended tokens of the corpus, in float64."""
    texts, site = sorted(corpus.texts, key=len), tower.fc2_site(block)
    inner = tower.fc2(block).in_features
    total, count = torch.zeros(inner, inner, dtype=torch.float64), 0
    for start in range(0, len(texts), _BATCH):
        keys = _keys(hosted, tower, site, texts[start : start + _BATCH])
        total += keys.mT @ keys
        count += len(keys)
        yield Progress(stage="moment", done=min(start + _BATCH, len(texts)), total=len(texts))
    if count < inner:
        raise BadMoment(f"{corpus.name} has {count} tokens; {inner} dimensions need more.")
    if not bool(torch.isfinite(total).all()):
        raise BadMoment(f"The corpus {corpus.name} gave {count} keys, not all of them finite.")
    return Moment(total, count, recipe_of(tower, block, corpus))


def _keys(
    hosted: HostedModel, tower: TextTower, site: str, texts: Sequence[str]
) -> Float[Tensor, "tokens inner"]:
    tokens = tower.tokens(texts, cut=True)
    ids = tokens.ids[:, :_CUT]
    with torch.no_grad(), hosted.captured(site) as seen:
        tower.module(input_ids=ids.to(hosted.device))
    attended = torch.arange(ids.shape[1])[None, :] <= tokens.eos[:, None]
    return seen[site][0].cpu()[attended].double()
