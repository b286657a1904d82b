"""A CLIP text encoder as the editor and the lens see it: blocks, norm, [EOS], projection."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import PromptTooLong
from models.spans import Span, token_span


@dataclass(frozen=True)
class Tokens:
    """Token ids, padded at the end.

    Attributes:
        ids: (rows, n).
        mask: (rows, n), 1 up to and including the first [EOS].
        eos: (rows,) index of the first [EOS].
    """

    ids: Int[Tensor, "rows n"]
    mask: Int[Tensor, "rows n"]
    eos: Int[Tensor, " rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextTower:
    """One CLIP text encoder of a hosted pipeline.

    Attributes:
        attribute: Its name in the pipeline, `text_encoder`.
        tower: Its name in stream sites, `text`.
        module: `CLIPTextModel` or `CLIPTextModelWithProjection`.
        projection: (out, d) text projection, None where the checkpoint has none.
        reachable: Blocks whose output can change the picture.
        fingerprint: Of this encoder's weights alone.
        logit_scale: exp of the full CLIP's, None where there is none.
        lock: For the tokenizer, which keeps padding as state.
    """

    attribute: str
    tower: str
    module: Any
    tokenizer: Any
    projection: Float[Tensor, "out d"] | None
    reachable: range
    fingerprint: str
    logit_scale: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def body(self) -> Any:
        """Where embeddings, encoder and final norm are, in both of the library's layouts."""
        return getattr(self.module, "text_model", self.module)

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder blocks."""
        return self.body.encoder.layers

    @property
    def n_blocks(self) -> int:
        """How many encoder blocks there are."""
        return len(self.blocks)

    @property
    def final_norm(self) -> nn.Module:
        """The layer norm behind the last block."""
        return self.body.final_layer_norm

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return int(self.module.config.hidden_size)

    @property
    def inner_width(self) -> int:
        """Of the MLPs: the length of a key."""
        return int(self.module.config.intermediate_size)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.module.config.num_attention_heads)

    @property
    def max_length(self) -> int:
        """Positions, [BOS] and [EOS] included."""
        return int(self.module.config.max_position_embeddings)

    @property
    def eos_id(self) -> int:
        """The id of [EOS]."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """The id that pads: [EOS], or "!" in some checkpoints."""
        return int(self.tokenizer.pad_token_id)

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr(vocabulary).encode()).hexdigest()

    def fc2(self, block: int) -> nn.Linear:
        """The second linear of the block's MLP: the matrix that a fact edit changes."""
        mlp: Any = self.blocks[block].mlp
        return mlp.fc2

    def fc2_site(self, block: int) -> str:
        """Its canonical name."""
        return f"{self.attribute}.text_model.encoder.layers.{block}.mlp.fc2"

    def tokens(
        self, texts: Sequence[str], *, pad: Literal["longest", "max"] = "longest", cut: bool = False
    ) -> Tokens:
        """Tokenise.

        Args:
            texts: One per row.
            pad: To the longest of these texts, or to `max_length` as pipelines do.
            cut: Cut what is too long, keeping [EOS]; else refuse it.

        Raises:
            PromptTooLong: A text has more than `max_length` tokens and is not to be cut.
        """
        rows = [self._ids(text) for text in texts]
        most = max(map(len, rows))
        if most > self.max_length and not cut:
            raise PromptTooLong(most - 2, self.max_length - 2)
        rows = [
            r if len(r) <= self.max_length else [*r[: self.max_length - 1], r[-1]] for r in rows
        ]
        n = self.max_length if pad == "max" else max(map(len, rows))
        ids = torch.tensor([r + [self.pad_id] * (n - len(r)) for r in rows])
        eos = (ids == self.eos_id).int().argmax(dim=1)
        return Tokens(ids, (torch.arange(n)[None, :] <= eos[:, None]).long(), eos)

    def count(self, text: str) -> int:
        """Tokens of the text, [BOS] and [EOS] included."""
        return len(self._ids(text))

    def span(self, prompt: str, subject: str) -> Span:
        """The subject's tokens; SubjectNotFound unless it occurs exactly once."""
        with self.lock:
            return token_span(self.tokenizer, prompt, subject)

    def _ids(self, text: str) -> list[int]:
        with self.lock:
            return self.tokenizer(text, padding=False, truncation=False, verbose=False).input_ids

    def embed(self, ids: Int[Tensor, "rows n"]) -> Float[Tensor, "rows n d"]:
        """Token plus position embeddings: what enters block 0."""
        return self.body.embeddings(input_ids=ids.to(self.fc2(0).weight.device))

    def states(self, ids: Int[Tensor, "rows n"]) -> Float[Tensor, "rows n d"]:
        """The stream behind the last block, not normed."""
        stream = self.embed(ids)
        return self.continued(stream, 0)

    def continued(self, stream: Float[Tensor, "rows n d"], first: int) -> Float[Tensor, "rows n d"]:
        """Run blocks `first` to the last on a stream; causal, so padding at the end is harmless."""
        causal = self.causal_mask(stream)
        for block in self.blocks[first:]:
            stream = block(stream, attention_mask=causal)
        return stream

    def causal_mask(self, stream: Float[Tensor, "rows n d"]) -> Float[Tensor, "1 1 n n"]:
        """Additive: what may not be looked at is the least number of the stream's dtype."""
        n, least = stream.shape[1], torch.finfo(stream.dtype).min
        full = torch.full((n, n), least, dtype=stream.dtype, device=stream.device)
        return full.triu(diagonal=1)[None, None]

    def project(self, states: Float[Tensor, "rows d"]) -> Float[Tensor, "rows out"]:
        """Final norm, then the projection where there is one; not normalised."""
        normed = self.final_norm(states)
        return normed if self.projection is None else normed @ self.projection.to(normed).mT
