"""SmolVLM 2: Idefics3's way of seeing; videos are not taken."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from models.eyes import Eyes
from models.tiled import Tiled
from models.toys_sight import save_seeing, text_settings
from models.toys_vision_more import (
    TILE,
    TILE_EYES,
    TILED_TEMPLATE,
    seeing_gpt2_tokenizer,
)


class Stills(SmolVLMProcessor):
    """The processor without its video side, which the class itself insists on."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What it is made of."""
        return ["image_processor", "tokenizer"]

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **settings: Any) -> Any:
        """Made of these parts, and of nothing where the class wants its third."""
        return super().from_args_and_dict([*args, None], processor_dict, **settings)

    apply_chat_template = ProcessorMixin.apply_chat_template  # its own asks how many frames


Stills.__name__ = SmolVLMProcessor.__name__  # what a folder says of its processor


class SmolVLM(Tiled):
    """Llama behind a SigLIP tower whose patches are shuffled together."""

    kind = "smolvlm"
    title = "SmolVLM 2"
    model = SmolVLMForConditionalGeneration

    def tools(self, folder: Path) -> Mapping[str, Any]:
        """Its processor."""
        return {"eyes": Eyes(Stills.from_pretrained(folder, local_files_only=True, backend="pil"))}

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Tiles of 4 tokens, at most two by two and a view of the whole."""
        tokenizer: Any = seeing_gpt2_tokenizer()
        config = SmolVLMConfig(
            text_config={**text_settings(tokenizer)},
            vision_config=TILE_EYES,
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=False,
        )
        pictures = SmolVLMImageProcessorPil(
            size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}
        )
        template = f"<|im_start|>{TILED_TEMPLATE}"
        processor = Stills(pictures, tokenizer, None, 4, chat_template=template)
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = SmolVLM()
