"""Mistral 3 (Small 3.1 and later): Pixtral's pictures, 2x2 patches to a token.

Positions by analogy with Pixtral: visual are the patches, the reference's are the breaks too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Mistral3Config, Mistral3ForConditionalGeneration

from models.errors import BadPart
from models.hosted import HostedModel
from models.marked_rows import MarkedRows
from models.sight import Sight
from models.toys_sight import save_seeing, text_settings
from models.toys_vision import EYES, SIDE, pixtral_processor


class Mistral3(MarkedRows):
    """Causal."""

    kind = "mistral3"
    title = "Mistral 3"
    model = Mistral3ForConditionalGeneration

    def sight(
        self,
        hosted: HostedModel,
        ids: Sequence[int],
        read: Mapping[str, Tensor],
        digests: tuple[str, ...],
    ) -> Sight:
        """As of every family; BadPart for one visual token alone, which the library cannot see."""
        found = super().sight(hosted, ids, read, digests)
        if len(found.visual) == 1:
            raise BadPart("the picture is one token, and two are the fewest; enlarge it")
        return found

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """Four layers; pictures of up to 4x4 tokens."""
        processor = pixtral_processor(merge=2)
        tokenizer = processor.tokenizer
        text: dict[str, Any] = {"model_type": "mistral", **text_settings(tokenizer)}
        vision = {"model_type": "pixtral", **EYES, "image_size": 4 * SIDE, "patch_size": SIDE // 2}
        config = Mistral3Config(
            text_config={**text, "head_dim": 8, "sliding_window": None},
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )
        return save_seeing(folder, self.model, config, processor, seed)


FAMILY = Mistral3()
