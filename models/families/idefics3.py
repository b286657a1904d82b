"""Idefics3 and the first SmolVLM: pictures are cut into tiles, and a view of the whole follows.

Each tile is a run of placeholders behind a mark that says its row and column.
"""

from pathlib import Path
from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
)

from models.tiled import Tiled
from models.toys_sight import save_seeing, text_settings
from models.toys_vision_more import (
    TILE,
    TILE_EYES,
    TILED_TEMPLATE,
    seeing_llama_tokenizer,
)


class Idefics3(Tiled):
    """Llama behind a SigLIP tower whose patches are shuffled together."""

    kind = "idefics3"
    title = "Idefics3 and SmolVLM 1"
    model = Idefics3ForConditionalGeneration

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Tiles of 4 tokens, at most two by two and a view of the whole."""
        tokenizer: Any = seeing_llama_tokenizer()
        config = Idefics3Config(
            text_config={**text_settings(tokenizer)},
            vision_config=TILE_EYES,
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            tie_word_embeddings=False,
        )
        pictures = Idefics3ImageProcessorPil(
            size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}
        )
        processor = Idefics3Processor(
            pictures, tokenizer, image_seq_len=4, chat_template=f"<s>{TILED_TEMPLATE}"
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Idefics3()
