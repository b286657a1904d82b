"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, UNet, VAE; epsilon and v-prediction.

Fact edits apply as published where the full CLIP is at hand (its text projection is not part of the
pipeline); the lens applies at every layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from models.clip_pipelines import ClipPipeline, named_positions
from models.family import Beside, Conditioning
from models.hosted import HostedModel
from models.patch import Patch
from models.pipelines import blanked
from models.toys import (
    seeded,
    text_model_of,
    toy_clip,
    toy_scheduler,
    toy_tokenizer,
    toy_unet,
    toy_vae,
)


class StableDiffusion(ClipPipeline):
    """SD 1.x and 2.x."""

    kind = "stable_diffusion"
    title = "Stable Diffusion 1.x and 2.x"
    pipelines = ("StableDiffusionPipeline",)
    default_steps, default_guidance = 50, 7.5
    pipeline = StableDiffusionPipeline
    towers = {"text_encoder": "text"}  # noqa: RUF012 - read only, as the base says
    applies = {  # noqa: RUF012
        "refact": None,
        "lora": None,
        "diffusion_lens": None,
        "sae": "there are no published dictionaries for its text encoder.",
        "control_vector": None,
        "back_patch": "there are no visual tokens in a text encoder.",
    }

    def reachable(self, blocks: int) -> range:
        """Every block: the normed last state is what the denoiser reads."""
        return range(blocks)

    def left_out(self) -> dict[str, Any]:
        """No safety checker: it would blank pictures silently."""
        return {
            "safety_checker": None,
            "feature_extractor": None,
            "image_encoder": None,
            "requires_safety_checker": False,
        }

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),  # noqa: ARG002 - the sequence is the only path
    ) -> Conditioning:
        """The normed last state at all positions, padded as the pipeline pads."""
        tower = hosted.text_towers["text_encoder"]
        tokens = tower.tokens(prompts, pad="max")
        with hosted.planned(patches, None, named_positions(tokens), tokens=tower.max_length):
            states = tower.module(input_ids=tokens.ids.to(hosted.device)).last_hidden_state
        return Conditioning(states.to(self.denoiser_dtype(hosted)))

    def encode_negative(
        self, hosted: HostedModel, prompts: Sequence[str | None], patches: Sequence[Patch]
    ) -> Conditioning:
        """As `encode`; the default is the empty text."""
        return self.encode(hosted, blanked(prompts), patches)

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One UNet call."""
        return self.said(hosted, latents, timesteps, conditioning.sequence)

    def tiny(
        self,
        folder: Path,
        seed: int = 0,
        prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    ) -> Path:
        """A random pipeline of about a megabyte, with the full CLIP in `clip/`."""
        with seeded(seed):
            tokenizer = toy_tokenizer(folder / "tokenizer")
            clip = toy_clip(tokenizer, seed)
            StableDiffusionPipeline(
                vae=toy_vae(seed),
                text_encoder=text_model_of(clip),
                tokenizer=tokenizer,
                unet=toy_unet(seed, cross_attention_dim=32),
                scheduler=toy_scheduler(prediction),
                **self.left_out(),
            ).save_pretrained(folder)
            clip.save_pretrained(folder / "clip")
        return folder


FAMILY = StableDiffusion()
