"""What all decoder families share: loading, tokens, and forwards over rows at their own positions.

The layers are called one by one, by us: masks, positions and rotations are stated, never guessed by
the library from the state of a cache. So rows of different lengths stand side by side, a prompt may
arrive in pieces of any length, and a pass can begin at any layer. Patches act through
`hosted.planned(...)` around a forward, one per row.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer

from models.decoder import TOWER, Decoder, find_decoder, linears_of, masks
from models.family import Family, LoadOptions, Modality
from models.fingerprint import fingerprint, joined
from models.hosted import HostedModel
from models.passage import Passage
from models.sight import Shown
from models.slot_cache import AheadCache, PrefixCache, SlotCache
from models.words import Words

APPLIES: Mapping[str, str | None] = {
    "refact": "it edits the text encoder of a model that draws; this one writes.",
    "lora": None,
    "diffusion_lens": "there is no picture to decode a layer into.",
    "sae": None,
    "control_vector": None,
    "back_patch": "it reads text only, so there are no visual tokens.",
}
# Rotations that depend on the longest row: beyond the length that they were trained for, one row
# would turn its neighbours.
_TURNED_BY_LENGTH = ("dynamic", "longrope")


class Language(Family):
    """A family whose models continue a text, one token at a time."""

    modality: Modality = "language"
    towers = {TOWER: TOWER}  # noqa: RUF012 - read only
    applies = APPLIES
    model: type[Any]
    """Its class with a language head."""
    writing: Literal["slots", "generate"] = "slots"
    """Whether its rows share forwards (`step`), or the library writes them one at a time."""
    default_attention: str = "sdpa"
    """The attention implementation, stated: `sdpa` where it is exact, else `eager`."""
    keeps_bits: bool = True
    """Whether a row keeps its last bits whatever others of its forward carry; not where experts
    take the tokens of all rows together."""
    joint_within_window: bool = True
    """Whether tokens that see each other in both directions do so inside a layer's window only."""

    def matches(self, folder: Path) -> bool:
        """Whether `config.json` names its class."""
        config = folder / "config.json"
        if not config.exists():
            return False
        named = json.loads(config.read_text()).get("architectures") or ()
        return self.model.__name__ in named

    def load(self, name: str, folder: Path, options: LoadOptions) -> HostedModel:
        """Host the model of the folder; OSError of the library if a part is missing."""
        model = self.model.from_pretrained(
            folder,
            dtype=options.dtype,
            attn_implementation=self.default_attention,
            use_safetensors=True,
            local_files_only=True,
        )
        self.prepare(model)
        model.to(options.device)
        decoder = find_decoder(model)
        return HostedModel(
            name=name,
            family=self,
            fingerprint=joined({TOWER: fingerprint(folder, options.cache)}),
            path=folder,
            dtype=options.dtype,
            device=options.device,
            modules={TOWER: model},
            parts={
                "decoder": decoder,
                "tokenizer": Words(AutoTokenizer.from_pretrained(folder, local_files_only=True)),
                **self.tools(folder),
            },
            towers={TOWER: decoder.layers},
            linears=linears_of(decoder),
            defaults=options.defaults,
            reread=lambda: joined({TOWER: fingerprint(folder)}),
        )

    def tools(self, folder: Path) -> Mapping[str, Any]:  # noqa: ARG002 - of families that see
        """What else of the folder the family works with."""
        return {}

    def prepare(self, model: Any) -> None:
        """Change nothing that the model computes, only how its modules are written."""

    @abstractmethod
    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Write a small random member of the real class to the folder, with its tokenizer."""

    def decoder(self, hosted: HostedModel) -> Decoder:
        """Embeddings, layers, final norm and head."""
        return hosted.parts["decoder"]

    def stream_width(self, hosted: HostedModel, tower: str) -> int:  # noqa: ARG002 - there is one
        """The hidden size."""
        return self.decoder(hosted).width

    def context_length(self, hosted: HostedModel) -> int:
        """Tokens that a row may have; rotations that look at the longest row end where they do."""
        config = self.decoder(hosted).config
        most = int(config.max_position_embeddings)
        turned = getattr(config, "rope_parameters", None) or {}
        if turned.get("rope_type") in _TURNED_BY_LENGTH:
            return min(most, int(turned.get("original_max_position_embeddings") or most))
        return most

    def vocab_size(self, hosted: HostedModel) -> int:
        """Rows of the embedding: every id is below."""
        return int(self.decoder(hosted).config.vocab_size)

    def eos_ids(self, hosted: HostedModel) -> tuple[int, ...]:
        """Ids that end an answer, as the model's generation settings say."""
        model = hosted.modules[TOWER]
        stated = model.generation_config.eos_token_id
        if stated is None:
            stated = model.config.eos_token_id
        return tuple(stated) if isinstance(stated, list) else () if stated is None else (stated,)

    def special_ids(self, hosted: HostedModel) -> frozenset[int]:
        """Ids that stand for marks, not for text."""
        return hosted.parts["tokenizer"].special_ids

    def tokenize(self, hosted: HostedModel, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text; `special` says whether with the tokenizer's marks around it."""
        return hosted.parts["tokenizer"].ids(text, special=special)

    def detokenize(self, hosted: HostedModel, ids: Sequence[int], *, special: bool = False) -> str:
        """What the ids spell; marks are left out unless asked for."""
        return hosted.parts["tokenizer"].text(ids, special=special)

    def chat(self, hosted: HostedModel, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids of a conversation, up to where the answer begins.

        Raises:
            NoChatTemplate: The tokenizer brings no template.
            BadConversation: The template refuses the messages.
        """
        return hosted.parts["tokenizer"].conversation(messages, hosted.name)

    def new_cache(self, hosted: HostedModel, slots: int, capacity: int) -> SlotCache:
        """Empty slots for so many rows of so many tokens."""
        shapes = self.decoder(hosted).shapes
        return SlotCache(shapes, slots, capacity, hosted.dtype, hosted.device)

    @torch.inference_mode()
    def step(  # noqa: PLR0913 - what a forward needs, by name
        self,
        hosted: HostedModel,
        ids: Int[Tensor, "rows tokens"],
        cache: SlotCache,
        slots: Sequence[int],
        starts: Sequence[int],
        *,
        every: bool = False,
        shown: Sequence[Shown | None] = (),
    ) -> Float[Tensor, "rows vocab"] | Float[Tensor, "rows tokens vocab"]:
        """Run the rows' new tokens and keep their keys and values.

        Row i's tokens stand at positions starts[i], starts[i] + 1, ... of slot slots[i] and see all
        that stands before them there. It is the same call for a prompt, a piece of one and a
        single new token.

        Args:
            hosted: The model.
            ids: The new tokens.
            cache: The slots.
            slots: Of the rows.
            starts: The first new token's position, per row.
            every: Logits of every token, not of each row's last.
            shown: Per row its pictures; left out where no row has any.

        Returns:
            Logits in float32, soft-cap included: of each row's last token, or of every one.

        Raises:
            ValueError: A row does not fit its slot, or two rows share one.
        """
        cache.open(slots, starts, ids.shape[1])
        positions = self._positions(hosted, starts, ids.shape[1])
        stream = self.embed(hosted, ids, positions, shown, starts)
        stream = self.run_layers(hosted, stream, 0, cache, shown=shown)
        return self.soft_cap(hosted, self.unembed(hosted, stream if every else stream[:, -1]))

    def logits(
        self,
        hosted: HostedModel,
        ids: Int[Tensor, "rows tokens"],
        shown: Sequence[Shown | None] = (),
    ) -> Float[Tensor, "rows tokens vocab"]:
        """A plain forward of rows of one length, nothing kept."""
        positions = self._positions(hosted, (0,) * len(ids), ids.shape[1])
        stream = self.embed(hosted, ids, positions, shown)
        stream = self.run_layers(hosted, stream, 0, shown=shown)
        return self.soft_cap(hosted, self.unembed(hosted, stream))

    def read(
        self,
        hosted: HostedModel,
        ids: Int[Tensor, "rows tokens"],
        shown: Sequence[Shown | None] = (),
    ) -> None:
        """Pass rows of one length through all layers, for what `captured` sees."""
        positions = self._positions(hosted, (0,) * len(ids), ids.shape[1])
        self.run_layers(hosted, self.embed(hosted, ids, positions, shown), 0, shown=shown)

    def embed(
        self,
        hosted: HostedModel,
        ids: Int[Tensor, "rows tokens"],
        positions: Int[Tensor, "rows tokens"],
        shown: Sequence[Shown | None] = (),  # noqa: ARG002 - of families that see
        starts: Sequence[int] = (),  # noqa: ARG002
    ) -> Float[Tensor, "rows tokens d"]:
        """What enters the first layer."""
        decoder = self.decoder(hosted)
        stream = decoder.embed(ids)
        return stream if decoder.places is None else stream + decoder.places(positions)

    def run_layers(
        self,
        hosted: HostedModel,
        stream: Float[Tensor, "rows tokens d"],
        first: int,
        cache: SlotCache | PrefixCache | None = None,
        positions: Int[Tensor, "rows tokens"] | None = None,
        shown: Sequence[Shown | None] = (),
    ) -> Float[Tensor, "rows tokens d"]:
        """The stream that leaves the last layer, given what enters layer `first`; not yet normed.

        Args:
            hosted: The model.
            stream: What enters layer `first`.
            first: The first layer that runs, counted from 0.
            cache: What the tokens see before themselves: opened slots, a prefix that all rows
                continue, or nothing.
            positions: Of the tokens; left out, they follow what the cache holds.
            shown: Per row its pictures; left out where no row has any.
        """
        going = self.passage(hosted, stream, cache, positions, shown)
        detours = going.detours()
        for index in range(first, len(self.decoder(hosted).layers)):
            stream = going.layer(index, stream)
            if detours is not None:
                stream = detours.behind(index, stream)
        return stream

    def passage(
        self,
        hosted: HostedModel,
        stream: Float[Tensor, "rows tokens d"],
        cache: SlotCache | AheadCache | PrefixCache | None = None,
        positions: Int[Tensor, "rows tokens"] | None = None,
        shown: Sequence[Shown | None] = (),
    ) -> Passage:
        """Masks, positions and rotations for these rows, to call layers with one by one."""
        decoder, (rows, tokens) = self.decoder(hosted), stream.shape[:2]
        starts = (0,) * rows if cache is None else cache.starts(rows)
        if positions is None:
            positions = self._positions(hosted, starts, tokens)
        joint = [() if one is None else one.sight.joint for one in shown]
        eager = self.default_attention == "eager"
        return Passage(
            hosted=hosted,
            family=self,
            decoder=decoder,
            positions=positions,
            starts=starts,
            cache=cache,
            shown=shown,
            masks=masks(
                decoder,
                positions,
                starts,
                stream.dtype,
                eager=eager,
                joint=joint,
                within=self.joint_within_window,
            ),
            turns=decoder.turns(stream, self.turning(positions, starts, shown)),
        )

    def turning(
        self,
        positions: Int[Tensor, "rows tokens"],
        starts: Sequence[int],  # noqa: ARG002 - of families that see
        shown: Sequence[Shown | None],  # noqa: ARG002
    ) -> Int[Tensor, "*axes rows tokens"]:
        """What is turned into rotations: a token's position, or one for each axis."""
        return positions

    def behind(
        self,
        index: int,  # noqa: ARG002 - of families that add features there
        stream: Float[Tensor, "rows tokens d"],
        going: Passage,  # noqa: ARG002
    ) -> Float[Tensor, "rows tokens d"]:
        """What enters the next layer, given what left this one."""
        return stream

    def unembed(
        self, hosted: HostedModel, stream: Float[Tensor, "*rows d"]
    ) -> Float[Tensor, "*rows vocab"]:
        """Final norm and head in float32, before any soft-cap: what a logit lens reads."""
        return self.headed(hosted, stream).float()

    def headed(
        self, hosted: HostedModel, stream: Float[Tensor, "*rows d"]
    ) -> Float[Tensor, "*rows vocab"]:
        """The same in the model's own precision, for those who look at a few rows at a time."""
        decoder = self.decoder(hosted)
        return decoder.head(decoder.norm(stream.to(hosted.dtype)))

    def cap(self, hosted: HostedModel) -> float | None:
        """What bounds the final logits, if anything does."""
        return getattr(self.decoder(hosted).config, "final_logit_softcapping", None)

    def soft_cap(
        self, hosted: HostedModel, logits: Float[Tensor, "*rows vocab"]
    ) -> Float[Tensor, "*rows vocab"]:
        """The logits as the model's own head bounds them; most do not."""
        cap = self.cap(hosted)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _positions(
        self, hosted: HostedModel, starts: Sequence[int], tokens: int
    ) -> Int[Tensor, "rows tokens"]:
        device = hosted.device
        return torch.tensor(starts, device=device)[:, None] + torch.arange(tokens, device=device)
