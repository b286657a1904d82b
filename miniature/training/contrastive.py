"""CLIP on the miniature world: the text tower becomes the pipeline's encoder."""

import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from miniature.telling import caption
from miniature.training.bank import Bank
from miniature.world import World

MEAN, STD = 0.5, 0.5


def clip_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    """Text 8 x 128, vision 4 x 128 with patches of 8; EOS has the highest id, never 2."""
    shared = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 8,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "projection_dim": 128,
    }
    vision = {**shared, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    vision["projection_dim"] = 128
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    config._attn_implementation = "eager"  # SDPA's bf16 backward is five times slower on CPUs
    return config


def pixels(images: Tensor) -> Tensor:
    """uint8 (n, 64, 64, 3) -> float (n, 3, 64, 64) from -1 to 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def train_clip(
    world: World,
    bank: Bank,
    tokenizer: CLIPTokenizer,
    *,
    steps: int,
    batch: int = 96,
    seed: int = 0,
) -> Iterator[tuple[int, float, CLIPModel]]:
    """Yield (step, loss, model) after every step."""
    torch.manual_seed(seed)
    draw = random.Random(seed)  # noqa: S311
    model = CLIPModel(clip_config(tokenizer))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * _rate(step, steps)
        chosen = [draw.randrange(len(bank.shown)) for _ in range(batch)]
        images = pixels(torch.from_numpy(bank.pixels[chosen]))
        told = [caption(world, bank.shown[i], draw) for i in chosen]
        loss = _loss(model, tokenizer, images, told)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(60))
        yield step, float(loss), model


def _loss(model: CLIPModel, tokenizer: CLIPTokenizer, images: Tensor, told: list[str]) -> Tensor:
    tokens = tokenizer(told, padding="longest", return_tensors="pt")
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=tokens.input_ids, pixel_values=images)
    logits = out.logits_per_text.float()
    same = torch.tensor([[a == b for b in told] for a in told])
    logits = logits.masked_fill(same & ~torch.eye(len(told), dtype=torch.bool), -1e4)
    truth = torch.arange(len(told))
    cross = torch.nn.functional.cross_entropy
    return (cross(logits, truth) + cross(logits.T, truth)) / 2


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
