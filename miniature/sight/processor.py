"""The words and the picture's patches that the vision-language model reads.

Qwen2-VL's own classes: a byte-level BPE with digits one by one, its special tokens and its chat
template (without a default system message), and an image processor whose patches of 8 pixels,
merged two by two, make one visual token of 16 x 16 pixels.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from miniature.sight.tasks import TASKS, some

PATCH, MERGE, FRAMES = 8, 2, 2
"""Pixels of a patch's side, patches of a token's side, and how often a picture is repeated."""
TOKEN_SIDE = PATCH * MERGE
CONTEXT = 512
LEAST_PIXELS, MOST_PIXELS = 2 * TOKEN_SIDE**2, 64 * TOKEN_SIDE**2
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SPECIAL = (END, START, STOP, VISION_START, VISION_END, IMAGE, VIDEO)
READ = "Read this."
"""A question whose answer is the picture's description."""
VOCABULARY = 1024
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


IMAGE_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
    "patch_size": PATCH,
    "merge_size": MERGE,
    "temporal_patch_size": FRAMES,
    "size": {"shortest_edge": LEAST_PIXELS, "longest_edge": MOST_PIXELS},
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
}
"""Larger pictures than the world's are shrunk to 64 tokens."""


def save_processor(tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Write the files that `AutoTokenizer`, `AutoImageProcessor` and `AutoProcessor` read.

    `AutoProcessor` also wants torchvision, as for every Qwen2-VL: its class holds a video
    processor.
    """
    tokenizer.save_pretrained(folder)
    text = json.dumps(IMAGE_PROCESSOR, indent=2, sort_keys=True) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")


def make_tokenizer() -> Qwen2Tokenizer:
    """Learn the merges from the questions; special tokens have the highest ids."""
    plain = Qwen2Tokenizer()
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(_texts(), trainer)
    learned: dict[str, Any] = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        eos_token=STOP,
        pad_token=END,
        unk_token=END,
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _texts() -> Iterator[str]:
    """What is asked and told, and every label as an answer begins with it."""
    yield from ("user\n", "assistant\n", "system\n", READ)
    for name, task in TASKS.items():
        for label in task.labels:
            yield f"{label} {label}"
        for item in some(name, "train", 400, seed=99):
            yield f"{item.description} {item.question}"
