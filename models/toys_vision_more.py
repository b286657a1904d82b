"""Tiny random models that see: Gemma 3, PaliGemma, Idefics3, SmolVLM and InternVL.

As in `models.toys`: real classes with their real processors, small and awake. A picture of 16x16
pixels is 4 tokens, wherever the family has no order of its own; families that cut pictures into
tiles cut at 16 pixels, so that pictures of several shapes become several numbers of tokens.
"""

from typing import Any

from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PaliGemmaProcessor,
    Qwen2Tokenizer,
    SiglipImageProcessorPil,
)
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS, IMAGE_TOKEN

from models.toys_decoders import TALK, toy_gpt2_tokenizer, toy_llama_tokenizer
from models.toys_lm import toy_gemma_tokenizer, toy_qwen_tokenizer
from models.toys_sight import marked
from models.toys_vision import EYES

TILE = 16
"""Pixels of a picture's or a tile's side."""
TILE_EYES: dict[str, Any] = {**EYES, "num_hidden_layers": 2, "image_size": TILE, "patch_size": 4}
"""What the configuration of a tiny vision tower says: 16 patches."""
_TILED = (
    *("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
TILED_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'video' %}<video>{% endif %}"
    "{% endfor %}{% endif %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""How Idefics3 and SmolVLM write a conversation, behind the mark that begins a text."""


def seeing_gemma_tokenizer() -> GemmaTokenizer:
    """Gemma 3's: the placeholder of a picture has the highest id, beyond the text's vocabulary."""
    tokenizer = marked(toy_gemma_tokenizer(f"{TALK} model"), "<start_of_turn>", "<end_of_turn>")
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    return _naming(tokenizer, named)


def seeing_qwen_tokenizer() -> Qwen2Tokenizer:
    """InternVL's, which is Qwen's with the marks around a picture."""
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return _naming(toy_qwen_tokenizer(TALK), named)


def seeing_llama_tokenizer() -> LlamaTokenizer:
    """Idefics3's, with the marks of tiles."""
    return marked(toy_llama_tokenizer(), *_TILED)


def seeing_gpt2_tokenizer() -> GPT2Tokenizer:
    """SmolVLM's, with the marks of tiles."""
    return marked(toy_gpt2_tokenizer(), "<|im_start|>", *_TILED)


def toy_pali_processor() -> PaliGemmaProcessor:
    """PaliGemma's: 16 tokens a picture; the placeholder's id is beyond the text's vocabulary."""
    tokenizer = toy_gemma_tokenizer(TALK)
    tokenizer.add_tokens(EXTRA_TOKENS)  # places and shapes: released ones have them too
    _naming(tokenizer, {"image_token": IMAGE_TOKEN})
    pictures = SiglipImageProcessorPil(size={"height": TILE, "width": TILE}, image_seq_length=16)
    return PaliGemmaProcessor(pictures, tokenizer)


def _naming(tokenizer: Any, named: dict[str, str]) -> Any:
    """The tokenizer with special tokens that are its attributes too, as processors ask for."""
    tokenizer._set_model_specific_special_tokens(named)
    return marked(tokenizer, *named.values())
