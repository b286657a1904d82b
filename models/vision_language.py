"""What all families share that read pictures among words: looking, seeing, and where it stands.

A prompt's pictures become columns of its row. `look` runs the family's own processor, on any
thread; `see` runs the vision tower once, on the thread that owns the model; `step` puts what was
seen where the placeholders stand. Positions, masks and features belong to the row: the library's
own forward keeps some of them on the module, where a neighbour would find them.

Covered: pictures, several in a prompt. Not covered: video; families that let every layer look at a
picture beside the sequence (cross-attention) have no visual rows, and are refused at loading.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from models.decoder import TOWER
from models.errors import PicturesMiscounted
from models.eyes import Message, open_eyes
from models.family import Modality
from models.hosted import HostedModel
from models.language import APPLIES, Language
from models.passage import Passage
from models.sight import Seen, Shown, Sight, Span, spans_of

_OF_WORDS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class VisionLanguage(Language):
    """A family whose models go on from words and pictures."""

    modality: Modality = "vision-language"
    applies = {**APPLIES, "back_patch": None}  # noqa: RUF012 - read only

    def tools(self, folder: Path) -> Mapping[str, Any]:
        """Its processor."""
        return {"eyes": open_eyes(folder)}

    # --- looking: on any thread -------------------------------------------------------------------

    def chat(self, hosted: HostedModel, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation without pictures, up to where the answer begins."""
        return self.look(hosted, messages, ())[0]

    def look(
        self, hosted: HostedModel, messages: Sequence[Message], pictures: Sequence[Image]
    ) -> tuple[list[int], Sight | None]:
        """The ids of a conversation, and its pictures; None where it has none.

        Args:
            hosted: The model.
            messages: With one part `{"type": "image"}` for each picture, in order.
            pictures: In RGB.

        Raises:
            PicturesMiscounted: There are more or fewer parts than pictures.
            BadPart: A part is a video, or a text with a mark that stands for a picture.
            NoChatTemplate, BadConversation: As for texts.
        """
        hosted.parts["eyes"].check(messages, self.image_ids(hosted))
        shown = list(pictures)
        read = dict(self.read_prompt(hosted, with_pictures(messages, shown)))
        ids = read["input_ids"][0].tolist()
        if not shown:
            return ids, None
        digests = tuple(map(hosted.parts["eyes"].digest, shown))
        return ids, self.sight(hosted, ids, read, digests)

    def tokenize(self, hosted: HostedModel, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text; BadPart if a picture is meant to stand in it."""
        hosted.parts["eyes"].check_text(text, self.image_ids(hosted))
        return super().tokenize(hosted, text, special=special)

    def read_prompt(self, hosted: HostedModel, messages: Sequence[Message]) -> Mapping[str, Tensor]:
        """What the family's processor makes of a conversation."""
        return hosted.parts["eyes"].read(messages, hosted.name)

    def sight(
        self,
        hosted: HostedModel,
        ids: Sequence[int],
        read: Mapping[str, Tensor],
        digests: tuple[str, ...],
    ) -> Sight:
        """Where the pictures stand in a prompt, from all that the processor made of it."""
        visual = _columns(ids, self.image_ids(hosted))
        turns, offset = self.turned(hosted, ids, read)
        return Sight(
            inputs={name: tensor for name, tensor in read.items() if name not in _OF_WORDS},
            visual=visual,
            reference=_columns(ids, self.reference_ids(hosted)),
            spans=self.spans(hosted, ids, visual),
            joint=self.joint(hosted, ids),
            turns=turns,
            offset=offset,
            digests=digests,
        )

    def image_ids(self, hosted: HostedModel) -> frozenset[int]:
        """Ids whose columns carry what was seen."""
        return frozenset({int(hosted.modules[TOWER].config.image_token_id)})

    def reference_ids(self, hosted: HostedModel) -> frozenset[int]:
        """Ids whose columns the paper's own code patches."""
        return self.image_ids(hosted)

    def spans(
        self,
        hosted: HostedModel,  # noqa: ARG002 - of families that put marks between a picture's rows
        ids: Sequence[int],  # noqa: ARG002
        visual: Sequence[int],
    ) -> tuple[Span, ...]:
        """Each picture's columns, from its first to its last."""
        return spans_of(visual)

    def joint(self, hosted: HostedModel, ids: Sequence[int]) -> tuple[Span, ...]:  # noqa: ARG002
        """Columns whose tokens see each other in both directions; most families are causal."""
        return ()

    def turned(
        self,
        hosted: HostedModel,  # noqa: ARG002 - of families with several axes
        ids: Sequence[int],  # noqa: ARG002
        read: Mapping[str, Tensor],  # noqa: ARG002
    ) -> tuple[Int[Tensor, "axes tokens"] | None, int]:
        """Rotary positions of a prompt's tokens, and what is added to a column behind it."""
        return None, 0

    # --- seeing and going on: on the thread that owns the model -----------------------------------

    @torch.inference_mode()
    def see(self, hosted: HostedModel, sight: Sight) -> Seen:
        """What the vision tower makes of a prompt's pictures."""
        model = hosted.modules[TOWER].model
        known = inspect.signature(model.get_image_features).parameters
        inputs = {n: _moved(t, hosted) for n, t in sight.inputs.items() if n in known}
        found = model.get_image_features(**inputs, return_dict=True)
        deep = getattr(found, "deepstack_features", None) or ()
        return Seen(features=_rows(found.pooler_output), deep=tuple(_rows(of) for of in deep))

    def embed(
        self,
        hosted: HostedModel,
        ids: Int[Tensor, "rows tokens"],
        positions: Int[Tensor, "rows tokens"],
        shown: Sequence[Shown | None] = (),
        starts: Sequence[int] = (),
    ) -> Float[Tensor, "rows tokens d"]:
        """Words by their embeddings, visual columns by what was seen there."""
        placed = [
            (row, one, one.here(starts[row] if starts else 0, ids.shape[1]))
            for row, one in enumerate(shown)
            if one is not None
        ]
        if not any(columns for _, _, (columns, _) in placed):
            return super().embed(hosted, ids, positions)
        words = ids.clone()
        for row, _, (columns, _) in placed:
            words[row, columns] = 0  # a placeholder may lie outside the vocabulary
        stream = super().embed(hosted, words, positions).clone()
        for row, one, (columns, at) in placed:
            if columns:
                stream[row, columns] = one.features().features[at].to(stream.dtype)
        return stream

    def turning(
        self,
        positions: Int[Tensor, "rows tokens"],
        starts: Sequence[int],
        shown: Sequence[Shown | None],
    ) -> Int[Tensor, "*axes rows tokens"]:
        """A token's position on each axis: the prompt's own, or its column and the row's offset."""
        turned = [
            (row, one.sight) for row, one in enumerate(shown) if one and one.sight.turns is not None
        ]
        if not turned:
            return positions
        axes = len(turned[0][1].turns)  # pyright: ignore[reportArgumentType] - chosen for having some
        found = positions.expand(axes, *positions.shape).clone()
        for row, sight in turned:
            found[:, row] += sight.offset
            own: Any = sight.turns
            here = own[:, starts[row] : starts[row] + positions.shape[1]]
            found[:, row, : here.shape[1]] = here.to(found.device)
        return found

    def behind(
        self, index: int, stream: Float[Tensor, "rows tokens d"], going: Passage
    ) -> Float[Tensor, "rows tokens d"]:
        """Features that the tower adds behind its early layers (DeepStack)."""
        changed = stream
        for row, one in enumerate(going.shown):
            if one is None or one.seen is None or index >= len(one.seen.deep):
                continue
            columns, at = one.here(going.starts[row], going.tokens)
            if columns:
                changed = changed.clone() if changed is stream else changed
                changed[row, columns] += one.seen.deep[index][at].to(stream.dtype)
        return changed


def with_pictures(messages: Sequence[Message], pictures: Sequence[Image]) -> list[dict[str, Any]]:
    """Every content as parts, the pictures inside them."""
    left = list(pictures)
    found: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        filled = [
            {"type": "image", "image": left.pop(0)} if part["type"] == "image" and left else part
            for part in parts
        ]
        found.append({**message, "content": filled})
    asked = sum(part["type"] == "image" for message in found for part in message["content"])
    if asked != len(pictures):
        raise PicturesMiscounted(asked, len(pictures))
    return found


def _columns(ids: Sequence[int], meant: frozenset[int]) -> tuple[int, ...]:
    return tuple(column for column, token in enumerate(ids) if token in meant)


def _moved(tensor: Tensor, hosted: HostedModel) -> Tensor:
    if tensor.is_floating_point():
        return tensor.to(hosted.device, hosted.dtype)
    return tensor.to(hosted.device)


def _rows(parts: Any) -> Float[Tensor, "visual d"]:
    """One row a visual token, whatever the pictures are held in."""
    tensors = [parts] if isinstance(parts, Tensor) else list(parts)
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])
