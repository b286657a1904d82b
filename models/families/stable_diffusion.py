"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, UNet, VAE; epsilon and v-prediction.

Fact edits apply as published where the full CLIP is at hand (its text projection is not part of the
pipeline); the lens applies at every layer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from models.clip_pipelines import ClipPipeline, blanked, named_positions
from models.family import Conditioning
from models.hosted import HostedModel
from models.patch import Patch
from models.toys import seeded, toy_tokenizer, wake


class StableDiffusion(ClipPipeline):
    """SD 1.x and 2.x."""

    kind = "stable_diffusion"
    title = "Stable Diffusion 1.x and 2.x"
    pipelines = ("StableDiffusionPipeline",)
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
        self, hosted: HostedModel, prompts: Sequence[str], patches: Sequence[Patch]
    ) -> Conditioning:
        """The normed last state at all positions, padded as the pipeline pads."""
        tower = hosted.text_towers["text_encoder"]
        tokens = tower.tokens(prompts, pad="max")
        with hosted.planned(patches, None, named_positions(tokens), tokens=tower.max_length):
            states = tower.module(input_ids=tokens.ids.to(hosted.device)).last_hidden_state
        return Conditioning(states)

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
        unet = hosted.modules["unet"]
        return unet(latents, timesteps, encoder_hidden_states=conditioning.sequence).sample

    def tiny(
        self,
        folder: Path,
        seed: int = 0,
        prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    ) -> Path:
        """A random pipeline of about two megabytes, with the full CLIP in `clip/`."""
        with seeded(seed):
            return self._tiny(folder, seed, prediction)

    def _tiny(self, folder: Path, seed: int, prediction: str) -> Path:
        tokenizer = toy_tokenizer(folder / "tokenizer")
        clip = _tiny_clip(tokenizer)
        wake(clip, seed, spread=1.2)
        text = CLIPTextModel(clip.config.text_config)
        text.load_state_dict(clip.text_model.state_dict())
        StableDiffusionPipeline(
            vae=_tiny_vae(seed),
            text_encoder=text,
            tokenizer=tokenizer,
            unet=_tiny_unet(seed),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear",
                beta_start=0.00085,
                beta_end=0.012,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                prediction_type=prediction,
            ),
            **self.left_out(),
        ).save_pretrained(folder)
        clip.save_pretrained(folder / "clip")
        return folder


def _tiny_clip(tokenizer: Any) -> CLIPModel:
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = {
        **shared,
        "num_hidden_layers": 4,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def _tiny_unet(seed: int) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    wake(unet, seed + 1, spread=0.9, peaked=3.0)
    return unet


def _tiny_vae(seed: int) -> AutoencoderKL:
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    wake(vae, seed + 2)
    return vae


FAMILY = StableDiffusion()
