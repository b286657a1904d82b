"""Language models that no other family knows: recurrent ones, encoder-decoders, rare decoders.

They are hosted as the library has them and written one text at a time by its `generate`, which
knows their caches and their order of things. Covered: any causal or sequence-to-sequence class of
transformers itself. Where one stack of layers follows the embeddings, patches act there on all
tokens. Not covered: rows that share a forward, patches of an encoder-decoder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from models.family import FAMILIES, LoadOptions
from models.fingerprint import fingerprint, joined
from models.hosted import HostedModel
from models.language import APPLIES, Language
from models.sight import Shown
from models.toys import seeded, wake
from models.toys_decoders import toy_llama_tokenizer
from models.words import Words

TOWER = "lm"
_UNBOUNDED = 2**20
"""Tokens of a model that states no length, as recurrent ones do."""
_REASON = "it needs what this model does at each layer, and nobody has written that down."


class AnyLanguage(Language):
    """A language model of another class."""

    kind = "any_language"
    title = "Any other language model"
    writing = "generate"
    applies: Mapping[str, str | None] = {**APPLIES, "sae": _REASON}

    def matches(self, folder: Path) -> bool:
        """Whether the library has a language head for it, and no other family hosts it."""
        kinds = (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
        known = {name for kind in kinds for name in kind.values()}
        if not known.intersection(_architectures(folder)):
            return False
        return not any(of.matches(folder) for of in FAMILIES.values() if of is not self)

    def load(self, name: str, folder: Path, options: LoadOptions) -> HostedModel:
        """Host the model of the folder; OSError of the library if a part is missing."""
        pairs = set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values())
        paired = bool(pairs.intersection(_architectures(folder)))
        kind: Any = AutoModelForSeq2SeqLM if paired else AutoModelForCausalLM
        model = kind.from_pretrained(
            folder, dtype=options.dtype, use_safetensors=True, local_files_only=True
        )
        model.to(options.device)
        layers = None if paired else _layers(model)
        return HostedModel(
            name=name,
            family=self,
            fingerprint=joined({TOWER: fingerprint(folder, options.cache)}),
            path=folder,
            dtype=options.dtype,
            device=options.device,
            modules={TOWER: model},
            parts={
                "tokenizer": Words(AutoTokenizer.from_pretrained(folder, local_files_only=True)),
            },
            towers={} if layers is None else {TOWER: layers},
            linears={} if layers is None else _linears(layers),
            defaults=options.defaults,
            reread=lambda: joined({TOWER: fingerprint(folder)}),
        )

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """A recurrent one: Mamba, of four layers."""
        tokenizer = toy_llama_tokenizer()
        stated: dict[str, Any] = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "state_size": 8,
            "num_hidden_layers": 4,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": False,
        }
        with seeded(seed):
            model = MambaForCausalLM(MambaConfig(**stated))
        wake(model, seed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def read(
        self,
        hosted: HostedModel,
        ids: Int[Tensor, "rows tokens"],
        shown: Sequence[Shown | None] = (),  # noqa: ARG002 - it reads no pictures
    ) -> None:
        """The library's own forward; shorter rows are filled up behind their end."""
        hosted.modules[TOWER](input_ids=ids, use_cache=False)

    def stream_width(self, hosted: HostedModel, tower: str) -> int:  # noqa: ARG002 - there is one
        """The hidden size."""
        return int(_config(hosted).hidden_size)

    def vocab_size(self, hosted: HostedModel) -> int:
        """Rows of the embedding: every id is below."""
        return int(_config(hosted).vocab_size)

    def context_length(self, hosted: HostedModel) -> int:
        """Tokens that a row may have; a large number where the model states none."""
        stated = ("max_position_embeddings", "n_positions", "max_sequence_length")
        found = (getattr(_config(hosted), name, None) for name in stated)
        return int(next((n for n in found if isinstance(n, int) and n > 0), _UNBOUNDED))


def _architectures(folder: Path) -> tuple[str, ...]:
    config = folder / "config.json"
    if not config.exists():
        return ()
    return tuple(json.loads(config.read_text()).get("architectures") or ())


def _config(hosted: HostedModel) -> Any:
    return hosted.modules[TOWER].config.get_text_config()


def _layers(model: Any) -> nn.ModuleList | None:
    """The one list of layers beside the embeddings; None where there is no such place."""
    tokens = model.get_input_embeddings()
    for stack in model.modules():
        children = list(stack.children())
        lists = [child for child in children if isinstance(child, nn.ModuleList)]
        if any(child is tokens for child in children) and len(lists) == 1:
            return lists[0]
    return None


def _linears(layers: nn.ModuleList) -> dict[str, nn.Module]:
    return {
        f"{TOWER}.layers.{index}.{name}": module
        for index, layer in enumerate(layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }


FAMILY = AnyLanguage()
