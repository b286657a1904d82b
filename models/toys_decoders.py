"""Tiny random decoders of the real classes, with tokenizers made on the spot.

As in `models.toys`: small and awake. Logits are peaked and biases are not zero, so that a wrong
mask, a dropped bias or an unread soft-cap moves the answer.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Tokenizer, LlamaTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from models.toys import seeded, wake
from models.toys_lm import KNOWN, LAYERS, behind_spaces, grown, numbered, tilt

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TALK = f"say {KNOWN} is a he she said that user assistant system"
"""Words that the tokenizers know as one token each, behind a space."""


def toy_llama_tokenizer() -> LlamaTokenizer:
    """A Llama tokenizer that knows a few words and spells the rest."""
    merges = grown(behind_spaces(TALK, "▁"))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    symbols = [*special, "\n", "▁", *map(chr, range(33, 127)), *(a + b for a, b in merges)]
    return LlamaTokenizer(vocab=numbered(symbols), merges=merges, add_bos_token=True)


def toy_gpt2_tokenizer() -> GPT2Tokenizer:
    """The same for GPT-2, over bytes."""
    merges = grown(behind_spaces(TALK, "Ġ"))
    symbols = [*bytes_to_unicode().values(), *(a + b for a, b in merges), "<|endoftext|>"]
    return GPT2Tokenizer(vocab=numbered(symbols), merges=merges)


def settings(tokenizer: Any) -> dict[str, Any]:
    """What the configuration of a tiny decoder says, in the words of most classes."""
    return {
        **LAYERS,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_decoder(
    folder: Path, kind: type[Any], config: Any, tokenizer: Any, seed: int, *, chats: bool = True
) -> Path:
    """Write a random member of the class, its matrices drawn large and its biases not zero."""
    with seeded(seed):
        model = kind(config)
    wake(model, seed, spread=1.2)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    norms = [m for n, m in model.named_modules() if n.endswith(("model.norm", "ln_f"))]
    tilt(norms[0])
    model.get_output_embeddings().weight.data.mul_(1 if config.tie_word_embeddings else 3)
    model.save_pretrained(folder)
    if chats:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder
