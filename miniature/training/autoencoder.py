"""The VAE of the miniature pipeline: f = 4, four latent channels, about 0.7 M parameters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from miniature.training.bank import Bank
from miniature.training.contrastive import pixels


def make_vae() -> AutoencoderKL:
    """Untrained, of the shape that the miniature ships."""
    kind: Any = AutoencoderKL
    return kind(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 48, 80),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train_vae(
    bank: Bank, folder: Path, *, steps: int = 2600, batch: int = 10, seed: int = 0
) -> Iterator[tuple[int, float]]:
    """L1 + MSE with a whiff of KL; yields (step, loss); sets `scaling_factor`; saves fp32."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    vae = make_vae()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.05)
    for step in range(steps):
        images = pixels(torch.from_numpy(bank.pixels[draw.integers(len(bank.shown), size=batch)]))
        loss = _loss(vae, images)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        yield step, float(loss.detach())
    _save(vae, bank, folder)


def _loss(vae: Any, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        back = vae.decode(posterior.sample()).sample
    off = back.float() - images
    return off.abs().mean() + off.square().mean() + 2e-5 * posterior.kl().mean() / 256


@torch.no_grad()
def _save(vae: AutoencoderKL, bank: Bank, folder: Path) -> None:
    latents = encode(vae, bank, range(512))
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(folder)


@torch.no_grad()
def encode(vae: Any, bank: Bank, which: range) -> Tensor:
    """Latent means, unscaled, (n, 4, 16, 16)."""
    found = []
    for start in range(which.start, which.stop, 64):
        chosen = pixels(torch.from_numpy(bank.pixels[start : min(start + 64, which.stop)]))
        found.append(vae.encode(chosen).latent_dist.mean)
    return torch.cat(found)
