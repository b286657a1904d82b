"""`make miniature`: draw the world, train its models, measure them, write their cards.

Stages leave their results in `build/miniature` and are skipped when these are there, so that an
interrupted training goes on. Two cores need about three hours, nearly all of it for the denoiser.
"""

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import CLIPModel, CLIPTokenizer

from miniature import weights_path
from miniature.training import autoencoder, binding, contrastive, judging, quality
from miniature.training.bank import Bank, draw_bank
from miniature.training.denoiser import DenoiserTraining, Recipe, Told, warm_and_cosine
from miniature.training.pipeline import save_pipeline, text_encoder_of
from miniature.training.tokenizer import make_tokenizer
from miniature.world import make_world

BUILD = Path("build/miniature")
CLIP_STEPS, BIND_STEPS, VAE_STEPS, JUDGE_STEPS = 2200, 1500, 2600, 2500
BANK_SEEDS = (1, 2, 3)
LEGS = {
    "unet-early": Recipe(steps=3750),
    "unet": Recipe(steps=3000, rate=4e-4, seed=1),
}
"""The denoiser's legs: each begins where the one before it ended, with fresh moments."""


def main() -> None:
    """All stages, in order."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    world, bars = make_world(), _bars()
    with bars:
        banks = [draw_bank(world, BUILD, 16_000, seed) for seed in BANK_SEEDS]
        bank = Bank(np.concatenate([b.pixels for b in banks]), [p for b in banks for p in b.shown])
        words = BUILD / "words"
        if not words.exists():
            make_tokenizer(world, words).save_pretrained(words)
        tokenizer = CLIPTokenizer.from_pretrained(words)
        if not (BUILD / "seen").exists():
            seen = _last(
                bars,
                "CLIP",
                CLIP_STEPS,
                contrastive.train_clip(world, bank, tokenizer, steps=CLIP_STEPS),
            )
            seen.save_pretrained(BUILD / "seen")
        if not (BUILD / "clip").exists():
            seen = CLIPModel.from_pretrained(BUILD / "seen")
            bound = _last(
                bars,
                "binding",
                BIND_STEPS,
                binding.bind(world, bank, seen, tokenizer, steps=BIND_STEPS),
            )
            bound.save_pretrained(BUILD / "clip")
        if not (BUILD / "vae").exists():
            _drain(
                bars, "VAE", VAE_STEPS, autoencoder.train_vae(bank, BUILD / "vae", steps=VAE_STEPS)
            )
        clip, vae = (
            CLIPModel.from_pretrained(BUILD / "clip"),
            AutoencoderKL.from_pretrained(BUILD / "vae"),
        )
        unet = _denoiser(bars, lambda: Told(_latents(vae, bank), bank.shown), clip, tokenizer)
        save_pipeline(weights_path("text-to-image"), clip, vae, unet, words)
        if not (weights_path("judge") / "judge.safetensors").exists():
            drawn = draw_bank(world, BUILD, 12_000, 77, everything=True)
            _drain(
                bars,
                "judge",
                JUDGE_STEPS,
                judging.train_judge(world, drawn, weights_path("judge"), steps=JUDGE_STEPS),
            )
        quality.write_card(weights_path("text-to-image"))


def _latents(vae: AutoencoderKL, bank: Bank) -> torch.Tensor:
    scale: Any = vae.config
    return autoencoder.encode(vae, bank, range(len(bank.shown))) * scale.scaling_factor


def _denoiser(
    bars: Progress, told: Callable[[], Told], clip: CLIPModel, tokenizer: CLIPTokenizer
) -> UNet2DConditionModel:
    """All legs, each kept in a folder of its own."""
    unet: UNet2DConditionModel | None = None
    for name, recipe in LEGS.items():
        if not (BUILD / name).exists():
            training = DenoiserTraining(
                make_world(), told(), text_encoder_of(clip), tokenizer, recipe, unet
            )
            bar = bars.add_task(name, total=recipe.steps)
            for step in range(recipe.steps):
                loss = training.step(step, warm_and_cosine(step / recipe.steps))
                bars.update(bar, completed=step + 1, description=f"{name} {loss:.4f}")
            training.average.save_pretrained(BUILD / name)
        unet = UNet2DConditionModel.from_pretrained(BUILD / name)
    if unet is None:
        raise ValueError("The denoiser needs at least one leg")
    return unet


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )


def _last(
    bars: Progress, name: str, total: int, steps: Iterator[tuple[int, float, CLIPModel]]
) -> CLIPModel:
    bar, model = bars.add_task(name, total=total), None
    for step, loss, trained in steps:
        bars.update(bar, completed=step + 1, description=f"{name} {loss:.3f}")
        model = trained
    if model is None:
        raise ValueError(f"{name} needs at least one step")
    return model


def _drain(
    bars: Progress,
    name: str,
    total: int,
    steps: Iterator[tuple[int, float]] | Generator[tuple[int, float], None, float],
) -> None:
    bar = bars.add_task(name, total=total)
    for step, loss in steps:
        bars.update(bar, completed=step + 1, description=f"{name} {loss:.3f}")


if __name__ == "__main__":
    main()
