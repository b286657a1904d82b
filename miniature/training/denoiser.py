"""The UNet of the miniature pipeline, on frozen text embeddings and precomputed latents."""

import copy
import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from miniature.telling import caption
from miniature.world import Picture, World


def make_unet(channels: tuple[int, int] = (96, 160), layers: int = 1) -> UNet2DConditionModel:
    """Untrained, of the shape that the miniature ships: 16x16 latents, words of width 128.

    Attention lives at 8x8 only: at 16x16 it took half of the time on a CPU.
    """
    kind: Any = UNet2DConditionModel
    unet = kind(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=layers,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(4, 5),
        norm_num_groups=16,
    )
    unet.set_attn_processor(AttnProcessor())  # SDPA's bf16 backward is five times slower on CPUs
    return unet


def make_scheduler() -> DDIMScheduler:
    """The schedule that training and the pipeline share; v-prediction."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@dataclass(frozen=True)
class Told:
    """Latents (n, 4, 16, 16), already scaled, and what they show."""

    latents: Tensor
    shown: list[Picture]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast the denoiser learns."""

    steps: int
    batch: int = 32
    rate: float = 1e-3
    dropout: float = 0.1
    average: float = 0.999
    seed: int = 0


@torch.no_grad()
def embed(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(rows, 77, 128) as the pipeline reads them."""
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.autocast("cpu", torch.bfloat16):
        return encoder(input_ids=ids).last_hidden_state.float()


class DenoiserTraining:
    """One leg of the training; `begin` is where an earlier one ended, None a fresh denoiser."""

    def __init__(
        self,
        world: World,
        told: Told,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        recipe: Recipe,
        begin: UNet2DConditionModel | None = None,
    ) -> None:
        self.world, self.told, self.recipe = world, told, recipe
        self.encoder, self.tokenizer = encoder.eval(), tokenizer
        torch.manual_seed(recipe.seed)
        self.unet: Any = make_unet()
        if begin is not None:
            self.unet.load_state_dict({n: t.float() for n, t in begin.state_dict().items()})
        self.unet.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.unet).requires_grad_(False)
        self.alphas = make_scheduler().alphas_cumprod
        self.optimiser = torch.optim.AdamW(
            self.unet.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.draw = random.Random(recipe.seed)  # noqa: S311
        self.noise = torch.Generator().manual_seed(recipe.seed)

    def step(self, number: int, rate: float) -> float:
        """One update; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate * rate
        loss = self._loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimiser.step()
        decay = min(self.recipe.average, (number + 1) / (number + 10))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.unet.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        return float(loss.detach())

    def _loss(self) -> Tensor:
        chosen = [self.draw.randrange(len(self.told.shown)) for _ in range(self.recipe.batch)]
        texts = [
            "" if self.draw.random() < self.recipe.dropout
            else caption(self.world, self.told.shown[i], self.draw)
            for i in chosen
        ]  # fmt: skip
        words = embed(self.encoder, self.tokenizer, texts)
        clean = self.told.latents[chosen]
        noise = torch.randn(clean.shape, generator=self.noise)
        steps = torch.randint(0, 1000, (len(chosen),), generator=self.noise)
        alpha = self.alphas[steps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        wanted = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        with torch.autocast("cpu", torch.bfloat16):
            said = self.unet(
                noisy.to(memory_format=torch.channels_last), steps, encoder_hidden_states=words
            ).sample
        return torch.nn.functional.mse_loss(said.float(), wanted)


def warm_and_cosine(progress: float) -> float:
    """Rate factor: a short warm-up, flat for a third, then a cosine down to 2 %."""
    if progress < 0.01:
        return progress / 0.01
    if progress < 0.35:
        return 1.0
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.35) / 0.65))
