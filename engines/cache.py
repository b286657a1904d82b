"""What prompts say to the denoiser, kept by content.

The key holds everything that an embedding depends on: token ids of every encoder, the weights'
fingerprint, the patch's digest, the dtype. Never an edit's name: names move.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engines.errors import refusal_of
from engines.store import Kept
from models.errors import Refusal
from models.family import Beside, Conditioning, TextToImage
from models.hosted import HostedModel
from models.patch import Patch


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text to be read under a patch; None is the family's own negative."""

    text: str | None
    patch: Patch
    negative: bool = False
    beside: Beside = "blank"


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One row's conditioning, and how many tokens the patch changed on the way, counted."""

    conditioning: Conditioning
    tokens_changed: int
    cached: bool = False


class Embeddings:
    """Reads texts with a hosted model's encoders; owner thread only.

    Args:
        hosted: The model.
        family: Its family.
        capacity: Bytes of embeddings that are kept.
        together: Read texts that are new in one forward. Faster where a forward is cheap to widen;
            not to the bit the same as one by one.
    """

    def __init__(
        self, hosted: HostedModel, family: TextToImage, capacity: int, *, together: bool = False
    ) -> None:
        self.hosted, self.family, self.together = hosted, family, together
        self.kept: Kept[Embedding] = Kept(capacity)

    def read(self, readings: Sequence[Reading]) -> list[Embedding | Refusal]:
        """One embedding per reading; a reading that fails is its refusal, the others stand."""
        keys = [self._guarded(reading) for reading in readings]
        known = {k: self.kept.get(k) for k in dict.fromkeys(keys) if isinstance(k, str)}
        paired = zip(keys, readings, strict=True)
        new = {k: r for k, r in paired if isinstance(k, str) and known[k] is None}
        fresh = dict(zip(new, self._fresh(list(new.values())), strict=True))
        for key, embedding in fresh.items():
            if isinstance(embedding, Embedding):
                self.kept.put(key, embedding, embedding.conditioning.nbytes)
        return [k if isinstance(k, Refusal) else _found(known[k], fresh.get(k)) for k in keys]

    def key(self, reading: Reading) -> str:
        """SHA-256 of all that the embedding depends on."""
        hosted = self.hosted
        parts = (
            hosted.fingerprint,
            str(hosted.dtype),
            str(self.family.denoiser_dtype(hosted)),
            reading.patch.digest,
            "negative" if reading.negative else "prompt",
            reading.beside,
            "default" if reading.text is None else self.family.reading_key(hosted, reading.text),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _guarded(self, reading: Reading) -> str | Refusal:
        """Its key; a text that a family cannot even look at fails alone."""
        try:
            return self.key(reading)
        except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
            return refusal_of(broken)

    def _fresh(self, readings: list[Reading]) -> list[Embedding | Refusal]:
        if not self.together:
            return [self._alone(reading) for reading in readings]
        found: list[Embedding | Refusal | None] = [None] * len(readings)
        for negative in (False, True):
            at = [i for i, reading in enumerate(readings) if reading.negative is negative]
            group = self._side_by_side([readings[i] for i in at]) if at else []
            for i, embedding in zip(at, group, strict=True):
                found[i] = embedding
        return [embedding for embedding in found if embedding is not None]

    def _alone(self, reading: Reading) -> Embedding | Refusal:
        try:
            return self._forward([reading])[0]
        except Exception as broken:  # noqa: BLE001 - one bad row never ends the others
            return refusal_of(broken)

    def _side_by_side(self, readings: list[Reading]) -> list[Embedding | Refusal]:
        """In one forward; one by one if that fails, so that only the bad rows fail."""
        try:
            return list(self._forward(readings))
        except Exception:  # noqa: BLE001 - which row is to blame is found out one by one
            return [self._alone(reading) for reading in readings]

    @torch.inference_mode()
    def _forward(self, readings: list[Reading]) -> list[Embedding]:
        patches = [reading.patch for reading in readings]
        with self.hosted.tallied() as runs:
            if readings[0].negative:
                negatives = [reading.text for reading in readings]
                said = self.family.encode_negative(self.hosted, negatives, patches)
            else:
                texts = [reading.text or "" for reading in readings]
                beside: list[Beside] = [reading.beside for reading in readings]
                said = self.family.encode(self.hosted, texts, patches, beside)
        # In memory of its own: a view would keep the whole batch alive and be counted as one row.
        return [
            Embedding(
                conditioning=said.row(i).each(torch.clone) if len(readings) > 1 else said,
                tokens_changed=sum(run.tokens_changed(i) for run in runs),
            )
            for i in range(len(readings))
        ]


def _found(known: Embedding | None, fresh: Embedding | Refusal | None) -> Embedding | Refusal:
    if known is not None:
        return Embedding(
            conditioning=known.conditioning, tokens_changed=known.tokens_changed, cached=True
        )
    if fresh is None:
        raise RuntimeError("A text was neither known nor read.")
    return fresh
