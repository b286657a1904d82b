"""Pipelines whose prompt a language model reads: the last state, normed, of a decoder-only stack.

A text is padded at the end to a length that is the family's own, never to the longest beside it,
and the stack is causal: no row can change another. Every layer can be looked at: the stack ends in
its final norm, so a row that leaves early is normed as the ordinary one is, and only once.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from models.errors import PromptTooLong
from models.family import Conditioning, Lens
from models.hosted import HostedModel
from models.patch import Patch
from models.pipelines import Pipeline
from models.plan import Named
from models.words import Words

_UNPUBLISHED = (
    "it is published for CLIP; its text encoder is a language model, for which the analogue "
    "(at mlp.down_proj) is not."
)
APPLIES: Mapping[str, str | None] = {
    "refact": _UNPUBLISHED,
    "lora": "adapters are imported as edits of CLIP text encoders; its own is a language model.",
    "diffusion_lens": None,
    "sae": "there are no published dictionaries for its text encoder.",
    "control_vector": None,
    "back_patch": "its text encoder is shown no picture, so there are no visual tokens.",
}


@dataclass(frozen=True, kw_only=True)
class Window:
    """How long a text is for the encoder, and which columns of it the denoiser reads."""

    length: int
    columns: tuple[int, ...]

    def named(self, tokens: int) -> Named:
        """`prompt` is what the denoiser reads of a row of so many tokens, `last` the last of it."""
        read = tuple(column for column in self.columns if column < tokens)
        return {"prompt": read, "last": read[-1:]}


class LanguagePipeline(Pipeline):
    """The common part of pipelines with one language model as text encoder and a transformer."""

    towers = {"text_encoder": "text"}  # noqa: RUF012 - read only, as the base says
    denoiser = "transformer"
    applies = APPLIES

    @abstractmethod
    def stack(self, encoder: Any) -> Any:
        """Of the text encoder the part that has token embeddings, `layers` and the final norm."""

    def blocks(self, encoder: Any) -> nn.ModuleList:
        """The decoder layers."""
        return self.stack(encoder).layers

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """The VAE's factor and the tokenizer."""
        return {**super().kept(pipeline), "words": Words(pipeline.tokenizer)}

    def lenses(self, hosted: HostedModel) -> Mapping[str, Lens | str]:
        """Every layer, normed once; nothing else carries the prompt."""
        ordinary = len(hosted.towers["text"])
        return {"text": Lens(tower="text", ordinary=ordinary, norm="final norm")}

    @torch.inference_mode()
    def read(
        self,
        hosted: HostedModel,
        rows: Sequence[Sequence[int]],
        patches: Sequence[Patch],
        window: Window,
    ) -> Conditioning:
        """The normed last state of each row's token ids in the window's columns, and their mask.

        Raises:
            PromptTooLong: A row is longer than the window.
        """
        words = hosted.parts["words"]
        ids, mask = padded(rows, window, words.tokenizer.pad_token_id)
        named = [window.named(len(row)) for row in rows]
        ids, mask = ids.to(hosted.device), mask.to(hosted.device)
        stack = self.stack(hosted.modules["text_encoder"])
        with hosted.planned(patches, None, named, tokens=window.length):
            said = stack(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        columns = torch.tensor(window.columns, device=hosted.device)
        return Conditioning(said[:, columns], mask=mask[:, columns])

    def check_prompt(self, hosted: HostedModel, prompt: str) -> None:
        """PromptTooLong if the pipeline would cut the prompt, counted as `token_count` does."""
        tokens, limit = self.token_count(hosted, prompt), self.prompt_limit(hosted)
        if tokens > limit:
            raise PromptTooLong(tokens, limit)


def padded(
    rows: Sequence[Sequence[int]], window: Window, pad: int
) -> tuple[Int[Tensor, "rows n"], Int[Tensor, "rows n"]]:
    """Ids and mask of one length, padded at the end.

    Raises:
        PromptTooLong: A row is longer than that, counted as the denoiser reads it.
    """
    most, length, read = max(map(len, rows)), window.length, len(window.columns)
    if most > length:
        raise PromptTooLong(most - length + read, read)
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids, mask
