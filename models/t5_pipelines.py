"""Pipelines whose prompts a T5 encoder reads, alone or beside CLIPs: what they share.

Every encoder pads to one length, so that a neighbour's prompt never changes a row. T5's length is
the limit of a prompt; what a CLIP beside it cuts at 77 tokens is cut as the stock pipelines cut it.
Not covered: float16, in which T5 overflows; fact edits; pipelines without their T5.
"""

import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.clip_pipelines import named_positions
from models.errors import PromptTooLong, UnsafeDtype
from models.family import Conditioning, Lens, LoadOptions
from models.hosted import HostedModel
from models.patch import Patch
from models.pipelines import Pipeline, blanked, within
from models.text_tower import Tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A tokenizer behind its lock, and the one length of its rows.

    Attributes:
        length: Tokens of a row, the end sign included.
        cuts: Whether a longer text loses its end, which stays signed; else it is refused.
        lock: For the tokenizer, which keeps padding as state.
    """

    tokenizer: Any
    length: int
    cuts: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, text: str) -> int:
        """Tokens of the text, nothing cut."""
        return len(self._ids(text))

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """All rows at the one length.

        Raises:
            PromptTooLong: A text does not fit and is not to be cut.
        """
        rows = [self._cut(self._ids(text)) for text in texts]
        ends = torch.tensor([len(row) - 1 for row in rows])
        pad = [int(self.tokenizer.pad_token_id)]
        ids = torch.tensor([row + pad * (self.length - len(row)) for row in rows])
        return Tokens(ids, (torch.arange(self.length)[None, :] <= ends[:, None]).long(), ends)

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.length:
            return ids
        if not self.cuts:
            raise PromptTooLong(len(ids) - 1, self.length - 1)
        return [*ids[: self.length - 1], ids[-1]]

    def _ids(self, text: str) -> list[int]:
        with self.lock:
            return self.tokenizer(text, padding=False, truncation=False, verbose=False).input_ids


class T5Pipeline(Pipeline):
    """The common part of Stable Diffusion 3, FLUX.1, PixArt-Sigma and DeepFloyd IF."""

    denoiser = "transformer"
    t5: str
    """The attribute of the T5 encoder."""
    masked = False
    """Whether T5 looks at the prompt only, or at the padding too."""
    lens_beside: tuple[str, ...] = ()

    @abstractmethod
    def length(self, pipeline: Any) -> int:
        """Tokens that T5 reads, its end sign included."""

    def as_read(self, text: str) -> str:
        """A prompt as the tokenizers get it."""
        return text

    def load(self, name: str, folder: Path, options: LoadOptions) -> HostedModel:
        """As every pipeline; UnsafeDtype for float16."""
        if options.dtype == torch.float16:
            raise UnsafeDtype("float16", "T5 overflows in it and spoils pictures", "bfloat16")
        return super().load(name, folder, options)

    def blocks(self, encoder: Any) -> nn.ModuleList:
        """T5's blocks; CLIP's encoder layers."""
        body = getattr(encoder, "text_model", encoder).encoder
        return body.block if hasattr(body, "block") else body.layers

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """The VAE's factor, and a reader for every encoder."""
        return {**super().kept(pipeline), "readers": self.readers(pipeline)}

    def readers(self, pipeline: Any) -> dict[str, Reader]:
        """By the encoder's attribute."""
        found = {}
        for encoder in self.towers:
            tokenizer = getattr(pipeline, encoder.replace("text_encoder", "tokenizer"))
            if encoder == self.t5:
                found[encoder] = Reader(tokenizer=tokenizer, length=self.length(pipeline))
            else:
                length = pipeline.tokenizer_max_length
                found[encoder] = Reader(tokenizer=tokenizer, length=length, cuts=True)
        return found

    def lenses(self, hosted: HostedModel) -> Mapping[str, Lens | str]:
        """T5 at every layer, normed once: its final norm stands behind the blocks."""
        tower = self.towers[self.t5]
        lens = Lens(
            tower=tower,
            ordinary=len(hosted.towers[tower]),
            norm="final norm",
            beside=self.lens_beside,
        )
        others = (t for t in self.towers.values() if t != tower)
        return {tower: lens, **dict.fromkeys(others, _CLIP_IS_NOT_LOOKED_AT)}

    def token_count(self, hosted: HostedModel, prompt: str) -> int:
        """What T5 counts, its end sign included."""
        return hosted.parts["readers"][self.t5].count(self.as_read(prompt))

    def prompt_limit(self, hosted: HostedModel) -> int:
        """T5's length."""
        return hosted.parts["readers"][self.t5].length

    def check_prompt(self, hosted: HostedModel, prompt: str) -> None:
        """PromptTooLong if T5 would cut the prompt; it has an end sign and no sign of beginning."""
        tokens, limit = self.token_count(hosted, prompt), self.prompt_limit(hosted)
        if tokens > limit:
            raise PromptTooLong(tokens - 1, limit - 1)

    def encode_negative(
        self, hosted: HostedModel, prompts: Sequence[str | None], patches: Sequence[Patch]
    ) -> Conditioning:
        """As `encode`; the default is the empty text."""
        return self.encode(hosted, blanked(prompts), patches)

    def tokens(self, hosted: HostedModel, encoder: str, texts: Sequence[str]) -> Tokens:
        """What one encoder gets for these texts."""
        return hosted.parts["readers"][encoder].tokens([self.as_read(text) for text in texts])

    def t5_states(
        self, hosted: HostedModel, tokens: Tokens, patches: Sequence[Patch]
    ) -> Float[Tensor, "rows tokens d"]:
        """T5's normed last state at all positions."""
        mask = tokens.mask.to(hosted.device) if self.masked else None
        with self.changed(hosted, self.t5, tokens, patches):
            read = hosted.modules[self.t5](tokens.ids.to(hosted.device), attention_mask=mask)
        return read.last_hidden_state

    @contextmanager
    def changed(
        self, hosted: HostedModel, encoder: str, tokens: Tokens, patches: Sequence[Patch]
    ) -> Iterator[None]:
        """Forwards of one encoder in this block are changed by what of each patch is meant for it.

        Encoders differ in length, so each has a plan of its own, and all its tokens are counted.
        """
        for patch in set(patches):
            hosted.check(patch)
        own = [within(patch, encoder, self.towers[encoder]) for patch in patches]
        named, length = named_positions(tokens), tokens.ids.shape[1]
        with hosted.planned(own, None, named, tokens=length):
            yield


def lowered(text: str) -> str:
    """As the stock pipelines of PixArt and IF prepare a text when they do not clean it."""
    return text.lower().strip()


_CLIP_IS_NOT_LOOKED_AT = (
    "nobody has said which state of a CLIP beside a T5 is its lens: the lens looks at T5 only."
)
