"""A CLIP text encoder as the editor and the lens see it: blocks, norm, [EOS], projection."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.spans import Span, subject_span


@dataclass(frozen=True)
class Tokens:
    """Token ids (rows, n) and, per row, the first [EOS] and the number of tokens up to it."""

    ids: Int[Tensor, "rows n"]
    eos: Int[Tensor, " rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTower:
    """One CLIP text encoder of a hosted pipeline.

    Attributes:
        attribute: Its name in the pipeline, `text_encoder`.
        tower: Its name in stream sites, `text`.
        projection: (out, d) text projection, None where the checkpoint has none.
        reachable: Blocks whose output can change the picture.
    """

    attribute: str
    tower: str
    module: nn.Module
    tokenizer: Any
    projection: Float[Tensor, "out d"] | None
    reachable: range
    fingerprint: str
    logit_scale: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def body(self) -> nn.Module:
        """Where embeddings, encoder and final norm are, in both of the library's layouts."""
        return getattr(self.module, "text_model", self.module)

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder blocks."""
        return self.body.encoder.layers  # type: ignore[union-attr,return-value]

    @property
    def final_norm(self) -> nn.Module:
        """The layer norm behind the last block."""
        return self.body.final_layer_norm  # type: ignore[return-value]

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return int(self.module.config.hidden_size)  # type: ignore[union-attr,arg-type]

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.module.config.num_attention_heads)  # type: ignore[union-attr,arg-type]

    @property
    def max_length(self) -> int:
        """Positions, [BOS] and [EOS] included."""
        return int(self.module.config.max_position_embeddings)  # type: ignore[union-attr,arg-type]

    @property
    def eos_id(self) -> int:
        """The id of [EOS]."""
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr(vocabulary).encode()).hexdigest()

    def fc2(self, block: int) -> nn.Linear:
        """The second linear of the block's MLP: the matrix that a fact edit changes."""
        return self.blocks[block].mlp.fc2  # type: ignore[union-attr,return-value]

    def fc2_site(self, block: int) -> str:
        """Its canonical name."""
        return f"{self.attribute}.text_model.encoder.layers.{block}.mlp.fc2"

    def tokens(self, texts: Sequence[str], *, full: bool = False, cut: bool = False) -> Tokens:
        """Tokenise; padded to the longest text, or to `max_length` where `full`.

        Nothing is cut unless `cut`: callers that must not lose text check `count` first.
        """
        with self.lock:
            rows = [self.tokenizer(text).input_ids for text in texts]
        if cut:
            rows = [r if len(r) <= self.max_length else [*r[: self.max_length - 1], self.eos_id] for r in rows]
        n = self.max_length if full else max(map(len, rows))
        pad = int(self.tokenizer.pad_token_id)
        ids = torch.tensor([r + [pad] * (n - len(r)) for r in rows])
        first_eos = (ids == self.eos_id).int().argmax(dim=1)
        return Tokens(ids, first_eos)

    def count(self, text: str) -> int:
        """Tokens of the text, [BOS] and [EOS] included."""
        with self.lock:
            return len(self.tokenizer(text).input_ids)

    def span(self, prompt: str, subject: str) -> Span:
        """The subject's tokens; SubjectMissing unless it occurs exactly once."""
        with self.lock:
            offsets = self.tokenizer(prompt, return_offsets_mapping=True).offset_mapping
        return subject_span([(int(a), int(b)) for a, b in offsets], prompt, subject)

    def embed(self, ids: Int[Tensor, "rows n"]) -> Float[Tensor, "rows n d"]:
        """Token plus position embeddings: what enters block 0."""
        return self.body.embeddings(input_ids=ids.to(self.fc2(0).weight.device))  # type: ignore[operator]

    def project(self, states: Float[Tensor, "rows d"]) -> Float[Tensor, "rows out"]:
        """Final norm, then the projection where there is one; not normalised."""
        normed = self.final_norm(states)
        return normed if self.projection is None else normed @ self.projection.to(normed).mT
