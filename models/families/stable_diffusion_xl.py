"""Stable Diffusion XL: two CLIP text encoders read before their last blocks, and a pooled vector.

Covered: the base pipeline. A fact edit must be made in both encoders to be whole. Not covered: the
refiner (it reads the second encoder only).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from models.clip_pipelines import ClipPipeline, named_positions, zeroed
from models.family import Beside, Conditioning
from models.hosted import HostedModel
from models.patch import Exit, Patch
from models.pipelines import blanked, leaving, read_by, replaced
from models.site import block
from models.toys import (
    seeded,
    text_model_of,
    text_settings,
    toy_clip,
    toy_scheduler,
    toy_tokenizer,
    toy_unet,
    toy_vae,
    wake,
)


class StableDiffusionXL(ClipPipeline):
    """SDXL base and its distilled relatives."""

    kind = "stable_diffusion_xl"
    title = "Stable Diffusion XL"
    pipelines = ("StableDiffusionXLPipeline",)
    default_steps, default_guidance = 50, 5.0
    pipeline = StableDiffusionXLPipeline
    towers = {"text_encoder": "text", "text_encoder_2": "text_2"}  # noqa: RUF012
    applies = {  # noqa: RUF012
        "refact": None,
        "lora": None,
        "diffusion_lens": None,
        "sae": "there are no published dictionaries for its text encoders.",
        "control_vector": None,
        "back_patch": "there are no visual tokens in a text encoder.",
    }

    lens_norm = "none"
    lens_beside = ("the other encoder", "the pooled vector of text_2")

    def reachable(self, blocks: int) -> range:
        """All but the last: the stream is read before it."""
        return range(blocks - 1)

    def left_out(self) -> dict[str, Any]:
        """No image encoder, no watermark behind the caller's back."""
        return {"image_encoder": None, "feature_extractor": None, "add_watermarker": False}

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),
    ) -> Conditioning:
        """What enters both encoders' last blocks, side by side; the second's pooled vector.

        Where a row leaves one encoder early, the other and the pooled vector read what `beside`
        says, always at full depth: a pass of such rows alone, which is not counted again.
        """
        texts = [read_by(tower, prompts, patches, beside) for tower in self.towers.values()]
        sequence, pooled = self._pass(hosted, texts, patches)
        gone = [row for row, patch in enumerate(patches) if leaving(patch)]
        if not gone:
            return Conditioning(sequence, pooled)
        around = read_by("", prompts, patches, beside)
        own = [around[row] for row in gone]
        with hosted.untallied():
            _, whole = self._pass(hosted, [own] * 2, [patches[row].without(Exit) for row in gone])
        return Conditioning(sequence, replaced(pooled, gone, whole))

    def _pass(
        self, hosted: HostedModel, texts: Sequence[Sequence[str]], patches: Sequence[Patch]
    ) -> tuple[Float[Tensor, "rows tokens d"], Float[Tensor, "rows p"]]:
        first, second = (hosted.text_towers[attribute] for attribute in self.towers)
        tokens = [t.tokens(own, pad="max") for t, own in zip((first, second), texts, strict=True)]
        # Own capture: what the library records as hidden_states depends on the order of hooks.
        sites = [block(tower.tower, tower.n_blocks - 2) for tower in (first, second)]
        named = named_positions(tokens[0])
        with (
            hosted.captured(*sites) as seen,
            hosted.planned(patches, None, named, tokens=tokens[0].ids.shape[1]),
        ):
            first.module(input_ids=tokens[0].ids.to(hosted.device))
            pooled = second.module(input_ids=tokens[1].ids.to(hosted.device)).text_embeds
        states, dtype = (
            torch.cat([seen[site][-1] for site in sites], dim=-1),
            self.denoiser_dtype(hosted),
        )
        return states.to(dtype), pooled.to(dtype)

    def encode_negative(
        self, hosted: HostedModel, prompts: Sequence[str | None], patches: Sequence[Patch]
    ) -> Conditioning:
        """As `encode`; the default is zeros where the pipeline says so, which no edit can reach."""
        found = self.encode(hosted, blanked(prompts), patches)
        if not hosted.parts["zero_negative"]:
            return found
        return zeroed(found, [i for i, prompt in enumerate(prompts) if prompt is None])

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One UNet call; sizes not given are the picture's own, uncropped."""
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
        if conditioning.sizes is None:
            added["time_ids"] = _sizes(latents, hosted.parts["scale"])
        return self.said(hosted, latents, timesteps, conditioning.sequence, added)

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """A random pipeline of about a megabyte, with the first encoder's full CLIP in `clip/`."""
        with seeded(seed):
            tokenizer = toy_tokenizer(folder / "tokenizer")
            tokenizer_2 = toy_tokenizer(folder / "tokenizer_2", pad="!")
            clip = toy_clip(tokenizer, seed)
            second = CLIPTextModelWithProjection(CLIPTextConfig(**text_settings(tokenizer_2)))
            wake(second, seed + 3, spread=1.2)
            StableDiffusionXLPipeline(
                vae=toy_vae(seed),
                text_encoder=text_model_of(clip),
                text_encoder_2=second,
                tokenizer=tokenizer,
                tokenizer_2=tokenizer_2,
                unet=_unet(seed),
                scheduler=_euler(),
                **self.left_out(),
            ).save_pretrained(folder)
            clip.save_pretrained(folder / "clip")
        return folder


def _unet(seed: int) -> Any:
    """64 = both encoders' widths; 8 numbers for each of the six size ids beside the 24 pooled."""
    return toy_unet(
        seed,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )


def _euler() -> Any:
    return EulerDiscreteScheduler.from_config(toy_scheduler().config)


def _sizes(latents: Float[Tensor, "rows c h w"], scale: int) -> Float[Tensor, "rows 6"]:
    """Original size, crop from the top left, target size: of each row."""
    height, width = latents.shape[2] * scale, latents.shape[3] * scale
    ids = torch.tensor([height, width, 0, 0, height, width], dtype=latents.dtype)
    return ids.to(latents.device).expand(latents.shape[0], -1)


FAMILY = StableDiffusionXL()
