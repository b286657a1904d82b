"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, UNet, VAE; epsilon and v-prediction.

Fact edits apply as published where the full CLIP is at hand (its text projection is not part of the
pipeline); the lens applies at every layer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from models.clip_pipelines import (
    SAMPLERS,
    fresh,
    full_clip,
    linears_of,
    make_tower,
    pictures,
    schedulers,
    toy_tokenizer,
    wake,
)
from models.errors import BadSize, PromptTooLong
from models.family import Conditioning, TextToImage
from models.fingerprint import cached_fingerprint, fingerprint
from models.hosted import HostedModel
from models.patch import Patch


class StableDiffusion(TextToImage):
    """SD 1.x and 2.x."""

    kind = "stable_diffusion"
    title = "Stable Diffusion 1.x and 2.x"
    pipelines = ("StableDiffusionPipeline",)
    samplers = SAMPLERS
    applies: Mapping[str, str | None] = {
        "refact": None,
        "lora": None,
        "diffusion_lens": None,
        "sae": "the denoiser's text encoder has no published dictionaries",
        "back_patch": "there are no visual tokens in a text encoder",
    }

    def load(
        self, name: str, folder: Path, *, dtype: torch.dtype, device: torch.device, options: Mapping[str, Any]
    ) -> HostedModel:
        """Host the pipeline of the folder."""
        pipeline = StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        encoder = pipeline.text_encoder
        clip = full_clip(folder, encoder, options, dtype, name)
        modules = {"text_encoder": encoder, "unet": pipeline.unet, "vae": pipeline.vae}
        configs = {k: dict(m.config.to_dict() if hasattr(m.config, "to_dict") else m.config) for k, m in modules.items()}  # fmt: skip
        configs = {k: {n: v for n, v in c.items() if not n.startswith("_")} for k, c in configs.items()}
        marks = cached_fingerprint(
            folder, str(dtype), lambda: fingerprint({"text_encoder": encoder}, configs), options.get("cache")
        )
        for module in (*modules.values(), *([clip] if clip else [])):
            module.to(device)
        tower = make_tower(
            "text_encoder", "text", encoder, pipeline.tokenizer,
            range(encoder.config.num_hidden_layers), clip,
        )  # fmt: skip
        return HostedModel(
            name=name,
            family=self,
            fingerprint=marks,
            path=folder,
            dtype=dtype,
            device=device,
            modules=modules,
            parts={"schedulers": schedulers(pipeline.scheduler), "scale": pipeline.vae_scale_factor},
            text_towers={"text_encoder": tower},
            clip=clip,
            towers={"text": tower.blocks},
            linears=linears_of("text_encoder", encoder),
            defaults=options,
        )

    def encode(
        self, hosted: HostedModel, prompts: Sequence[str], patches: Sequence[Patch]
    ) -> Conditioning:
        """The normed last state at all positions."""
        tower = hosted.text_towers["text_encoder"]
        tokens = tower.tokens(prompts, full=True, cut=True)
        with torch.inference_mode(), hosted.planned(patches, tokens=tokens.ids.shape[1]):
            states = tower.module(input_ids=tokens.ids.to(hosted.device)).last_hidden_state
        return Conditioning(states)

    def encode_negative(
        self, hosted: HostedModel, prompts: Sequence[str | None], patches: Sequence[Patch]
    ) -> Conditioning:
        """As `encode`; the default is the empty text."""
        return self.encode(hosted, [p or "" for p in prompts], patches)

    def denoise(
        self, hosted: HostedModel, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """One UNet call."""
        return hosted.modules["unet"](
            latents, timesteps, encoder_hidden_states=conditioning.sequence
        ).sample

    def decode(self, hosted: HostedModel, latents: Tensor) -> Tensor:
        """Through the VAE."""
        vae = hosted.modules["vae"]
        factor = vae.config.scaling_factor  # type: ignore[union-attr]
        return pictures(vae.decode(latents.to(hosted.dtype) / factor).sample)  # type: ignore[operator]

    def scheduler(self, hosted: HostedModel, name: str | None) -> SchedulerMixin:
        """A fresh one; UnknownSampler for others."""
        return fresh(hosted.parts["schedulers"], name)

    def latent_shape(
        self, hosted: HostedModel, height: int | None, width: int | None
    ) -> tuple[int, int, int]:
        """BadSize unless the sides are multiples of 8 latent cells' pixels."""
        config: Any = hosted.modules["unet"].config
        factor = int(hosted.parts["scale"])
        height, width = height or config.sample_size * factor, width or config.sample_size * factor
        multiple = factor * 2 ** (len(config.block_out_channels) - 1)
        if height <= 0 or width <= 0 or height % multiple or width % multiple:
            raise BadSize(height, width, multiple)
        return config.in_channels, height // factor, width // factor

    def check_prompt(self, hosted: HostedModel, prompt: str) -> None:
        """PromptTooLong if it would be cut."""
        tower = hosted.text_towers["text_encoder"]
        if (n := tower.count(prompt)) > tower.max_length:
            raise PromptTooLong(n - 2, tower.max_length - 2)

    def tiny(self, folder: Path, seed: int = 0, prediction: str = "epsilon") -> Path:
        """A random pipeline of about a megabyte, with the full CLIP in `clip/`."""
        torch.manual_seed(seed)
        tokenizer = toy_tokenizer(folder / "tokenizer")
        clip = _tiny_clip(tokenizer)
        wake(clip, seed, 1.6)
        text = CLIPTextModel(clip.config.text_config)
        text.load_state_dict(_unprefixed(clip))
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
            block_out_channels=(16, 32), cross_attention_dim=32, attention_head_dim=4,
            norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        wake(unet, seed + 1, 0.9)
        vae = AutoencoderKL(
            block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
        )  # fmt: skip
        StableDiffusionPipeline(
            vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,  # type: ignore[arg-type]
        ).save_pretrained(folder)  # fmt: skip
        clip.save_pretrained(folder / "clip")
        return folder


def _tiny_clip(tokenizer: Any) -> CLIPModel:
    eos = tokenizer.eos_token_id
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "projection_dim": 24}
    text = {
        **shared, "num_hidden_layers": 4, "vocab_size": len(tokenizer), "eos_token_id": eos,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": eos,
    }  # fmt: skip
    vision = {**shared, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def _unprefixed(clip: CLIPModel) -> dict[str, Tensor]:
    return {n.removeprefix("text_model."): t for n, t in clip.text_model.state_dict().items()}


FAMILIES = (StableDiffusion(),)
