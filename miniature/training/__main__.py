"""`make miniature`: draw and tell the world, train its models, measure them, write their cards.

`python -m miniature.training language` makes the language model alone, `sight` the vision-language
model, `pictures` the others; the language model's SAEs are trained by `tiller sae train` on the
texts that it leaves in `build/miniature/texts.jsonl`. Stages leave their results in
`build/miniature` and are skipped when these are there, so that an interrupted training goes on.
Without `sight` two cores need about four hours, most of them for the denoiser. `sight` takes eight
minutes on a GPU and is slow without: there its rounds may take `SLOWER` times as long.
"""

import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer, LlamaForCausalLM

from miniature import weights_path
from miniature.prose.corpus import documents
from miniature.training import (
    autoencoder,
    binding,
    contrastive,
    judging,
    language_quality,
    quality,
    vision_language,
    vision_language_model,
    vision_language_quality,
)
from miniature.training.bank import Bank, draw_bank
from miniature.training.denoiser import DenoiserTraining, Recipe, Told, warm_and_cosine
from miniature.training.language import save_language, train_language
from miniature.training.pipeline import save_pipeline, text_encoder_of
from miniature.training.spelling import learn_spelling
from miniature.training.tokenizer import make_tokenizer
from miniature.world import make_world

BUILD = Path("build/miniature")
CLIP_STEPS, BIND_STEPS, VAE_STEPS, JUDGE_STEPS = 2200, 1500, 2600, 2500
BANK_SEEDS = (1, 2, 3)
SAE_SEED, SAE_TEXTS = 500_000, 60_000
"""Texts that the language model did not read; about 2.8 million tokens."""
SLOWER = 150
"""How many times a GPU's budget of time the vision-language model gets on a CPU: about a day."""
LEGS = {
    "unet-early": Recipe(steps=3750),
    "unet": Recipe(steps=3000, rate=4e-4, seed=1),
}
"""The denoiser's legs: each begins where the one before it ended, with fresh moments."""


def main(asked: Sequence[str] = ()) -> None:
    """The stages asked for, or all, in order."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    for stage in asked or STAGES:
        STAGES[stage]()


def pictures() -> None:
    """Everything that draws, and the judge of pictures."""
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


def language() -> None:
    """The tokenizer, the language model, its card, and texts for its SAEs."""
    spelling, folder = BUILD / "spelling", weights_path("language")
    if not spelling.exists():
        learn_spelling(spelling)
    tokenizer = AutoTokenizer.from_pretrained(spelling)
    if not (folder / "model.safetensors").exists():
        with _bars() as bars:
            model = _taught(bars, train_language(tokenizer, BUILD / "language"))
        save_language(model, tokenizer, folder)
    with (BUILD / "texts.jsonl").open("w", encoding="utf-8") as file:
        for document in islice(documents(SAE_SEED), SAE_TEXTS):
            file.write(json.dumps({"text": document.text, "kind": document.kind}) + "\n")
    language_quality.write_card(folder)


def sight() -> None:
    """The vision-language model, in two rounds, and its card."""
    folder, early = weights_path("vision-language"), BUILD / "sight-early"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    second = replace(vision_language.SECOND_ROUND, start=str(early))
    for place, lesson in ((early, vision_language.FIRST_ROUND), (folder, second)):
        if (place / "model.safetensors").exists():
            continue
        seconds = lesson.seconds * (1 if device == "cuda" else SLOWER)
        lessons = vision_language.train(
            place,
            device=device,
            workers=os.cpu_count() or 1,
            lesson=replace(lesson, seconds=seconds),
            shape=vision_language_model.Shape(),
        )
        with _bars() as bars:
            bar = bars.add_task("sight", total=round(seconds))
            for told in lessons:
                mean = told.get("mean", 0.0)
                bars.update(bar, completed=told["seconds"], description=f"sight {mean:.3f}")
    vision_language_quality.write_card(folder)


STAGES = {"pictures": pictures, "language": language, "sight": sight}


def _taught(
    bars: Progress, lesson: Generator[tuple[float, float], None, LlamaForCausalLM]
) -> LlamaForCausalLM:
    bar = bars.add_task("language", total=1000)
    while True:
        try:
            share, loss = next(lesson)
        except StopIteration as over:
            return over.value
        bars.update(bar, completed=int(1000 * share), description=f"language {loss:.3f}")


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
    main(sys.argv[1:])
