"""Processors of tiny models that see: Qwen's, the LLaVAs', Pixtral's and Mistral 3's.

As in `models.toys_sight`: the real classes, small. A picture is few tokens: one of 16x24 pixels is
2 by 3 where the family keeps a picture's shape.
"""

from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlavaImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models.eyes import without_video
from models.pixtral_processor import PixtralProcessor
from models.toys_decoders import TALK, toy_llama_tokenizer
from models.toys_lm import KNOWN, behind_spaces, grown, numbered, toy_qwen_tokenizer
from models.toys_sight import QWEN_TEMPLATE, marked, seeing_qwen_tokenizer

SIDE = 8
"""Pixels of the side of a visual token, where a family keeps a picture's shape."""
EYES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}
"""What the configuration of a tiny vision tower says in the words of most classes."""
QWEN_EYES: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 32,
    "patch_size": SIDE // 2,
}
"""The same in the words of Qwen's."""
DEEP_EYES: dict[str, Any] = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
"""What Qwen 3's says besides: positions of a 4x4 grid, features for two decoder layers."""
INTERLEAVED: dict[str, Any] = {
    "head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
"""What its decoder says: the three axes share half a head's width by turns."""
PINPOINTS = [[16, 16], [32, 16], [32, 32]]
"""Sizes, as (height, width), that LLaVA-OneVision's toy cuts into tiles of 16x16 pixels.

None is wide: a wide picture is padded, and its padding left out of what is seen."""

_CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)
_VICUNA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: " + _CONTENT + " {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}[INST]" + _CONTENT.replace("<image>\n", "[IMG]") + "[/INST]{% endif %}{% endfor %}"
)
_PICTURE_OF_QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
_TEKKEN_MARKS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    "[IMG_END]",
)


def qwen_processor(kind: type[ProcessorMixin]) -> Any:
    """Of a Qwen that sees; a picture is 4 to 16 tokens and keeps its shape."""
    pictures = Qwen2VLImageProcessorPil(
        patch_size=SIDE // 2,
        size={"shortest_edge": 4 * SIDE**2, "longest_edge": 16 * SIDE**2},
    )
    seeing = without_video(kind)
    return seeing(pictures, seeing_qwen_tokenizer(), chat_template=QWEN_TEMPLATE)


def qwen_ids(tokenizer: Any) -> dict[str, Any]:
    """Where the configuration of a Qwen that sees has its marks."""
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def llava_processor() -> LlavaProcessor:
    """LLaVA 1.5's: every picture is cut to a square of 9 tokens."""
    tokenizer = marked(toy_llama_tokenizer(), "<image>", "<pad>")
    tokenizer.pad_token = "<pad>"  # noqa: S105 - a mark
    pictures = LlavaImageProcessorPil(
        size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12}
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_VICUNA_TEMPLATE,
    )


def onevision_processor() -> Any:
    """LLaVA-OneVision's: the whole picture in 4 tokens, then its tiles with a mark a line."""
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
    )
    return without_video(LlavaOnevisionProcessor)(
        pictures,
        marked(toy_qwen_tokenizer(TALK), "<image>", "<video>"),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=QWEN_TEMPLATE.replace(_PICTURE_OF_QWEN, "<image>\n"),
    )


def pixtral_processor(merge: int) -> PixtralProcessor:
    """Pixtral's (`merge` 1) or Mistral 3's (2): a token for 8x8 pixels, marks behind each line."""
    patch = SIDE // merge
    return PixtralProcessor(
        PixtralImageProcessorPil(
            size={"longest_edge": 4 * SIDE}, patch_size={"height": patch, "width": patch}
        ),
        toy_tekken_tokenizer(),
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=_MISTRAL_TEMPLATE,
    )


def toy_tekken_tokenizer() -> PreTrainedTokenizerFast:
    """Mistral's since Pixtral: over bytes, its marks before them, [IMG] at 10; it adds <s>."""
    merges = grown(behind_spaces(f"{TALK} {KNOWN}", "Ġ"))
    symbols = [*_TEKKEN_MARKS, *bytes_to_unicode().values(), *(a + b for a, b in merges)]
    spelled = Tokenizer(BPE(vocab=numbered(symbols), merges=merges))
    spelled.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    spelled.decoder = decoders.ByteLevel()
    spelled.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spelled, **named)
    return marked(tokenizer, *_TEKKEN_MARKS)
