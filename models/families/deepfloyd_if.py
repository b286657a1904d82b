"""DeepFloyd IF, stage I: T5 alone, a UNet that draws 64x64 pixels without a VAE.

The lens looks at every layer. Prompts are put into lower case, as the stock pipeline does without
its caption cleaning; T5 sees them through a mask, the UNet sees the padding too. The UNet also says
a variance, which guidance leaves as the prompt's. Covered: stage I with its own thresholding. Not
covered: stages II and III, caption cleaning; the safety checker and the watermark are left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnAddedKVProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from jaxtyping import Float
from torch import Tensor

from models.family import Beside, Conditioning
from models.hosted import HostedModel
from models.patch import Patch
from models.t5_pipelines import T5Pipeline, lowered
from models.toys import seeded, wake
from models.toys_t5 import toy_t5, toy_t5_tokenizer

_COLOURS = 3
_LEARNED = ("learned", "learned_range")


class DeepFloydIF(T5Pipeline):
    """IF-I M, L and XL."""

    kind = "deepfloyd_if"
    title = "DeepFloyd IF"
    pipelines = ("IFPipeline",)
    pipeline = IFPipeline
    towers = {"text_encoder": "text"}  # noqa: RUF012 - read only, as the base says
    t5 = "text_encoder"
    masked = True
    denoiser = "unet"
    coder = None
    samplers = ("ddpm", "dpmpp_2m")
    default_steps, default_guidance = 100, 7.0
    stated = {  # noqa: RUF012
        "dpmpp_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
    }
    applies = {  # noqa: RUF012
        "refact": "its text encoder is T5: writing facts there is unpublished.",
        "lora": "its text encoder is T5, and a fact adapter changes CLIPs only.",
        "diffusion_lens": None,
        "sae": "there are no published dictionaries for its text encoder.",
        "control_vector": None,
        "back_patch": "there are no visual tokens in a text encoder.",
    }

    def length(self, pipeline: Any) -> int:  # noqa: ARG002
        """What T5 was read to when IF was trained."""
        return 77

    def as_read(self, text: str) -> str:
        """In lower case."""
        return lowered(text)

    def left_out(self) -> dict[str, Any]:
        """No safety checker, which would blank pictures silently, and no watermark."""
        return {
            "safety_checker": None,
            "feature_extractor": None,
            "watermarker": None,
            "requires_safety_checker": False,
        }

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """Pixels are their own latents; whether the schedule uses the variance that is said."""
        learned = pipeline.scheduler.config.variance_type in _LEARNED
        return {"scale": 1, "readers": self.readers(pipeline), "learned": learned}

    def multiple(self, hosted: HostedModel) -> int:
        """The UNet halves the sides once per resolution."""
        return 2 ** (len(hosted.modules["unet"].config.block_out_channels) - 1)

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),  # noqa: ARG002 - the sequence is the only path
    ) -> Conditioning:
        """T5's states at all positions."""
        return Conditioning(self.t5_states(hosted, self.tokens(hosted, self.t5, prompts), patches))

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows said h w"]:
        """One UNet call: the noise, and behind it the variance where the schedule uses it."""
        said = hosted.modules["unet"](
            latents, timesteps, encoder_hidden_states=conditioning.sequence
        ).sample
        return said if hosted.parts["learned"] else said[:, :_COLOURS]

    def guide(self, conditional: Tensor, unconditional: Tensor, guidance: Tensor) -> Tensor:
        """The noise is guided; the variance stays the prompt's."""
        noise, variance = conditional[:, :_COLOURS], conditional[:, _COLOURS:]
        guided = super().guide(noise, unconditional[:, :_COLOURS], guidance)
        return torch.cat([guided, variance], dim=1)

    @torch.inference_mode()
    def decode(
        self,
        hosted: HostedModel,  # noqa: ARG002 - pixels are drawn as they are
        latents: Tensor,
    ) -> Float[Tensor, "rows 3 height width"]:
        """From -1 to 1 in pixels to 0 to 1."""
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def tiny(self, folder: Path, seed: int = 0, *, learned: bool = True) -> Path:
        """A random pipeline of about a megabyte; `learned` as all published schedules are."""
        with seeded(seed):
            tokenizer = toy_t5_tokenizer(folder / "tokenizer")
            IFPipeline(
                tokenizer=tokenizer,
                text_encoder=toy_t5(tokenizer, seed),
                unet=_unet(seed + 1),
                scheduler=_schedule(learned=learned),
                **self.left_out(),
            ).save_pretrained(folder)
        return folder


def _unet(seed: int) -> UNet2DConditionModel:
    """Two resolutions of IF's own blocks, with peaked cross-attention."""
    stated: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "in_channels": _COLOURS,
        "out_channels": 2 * _COLOURS,
        "cross_attention_dim": 32,
        "encoder_hid_dim": 32,
        "attention_head_dim": 8,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "cross_attention_norm": "group_norm",
        "resnet_time_scale_shift": "scale_shift",
        "act_fn": "gelu",
    }
    unet = UNet2DConditionModel(**stated)
    unet.set_attn_processor(AttnAddedKVProcessor())
    wake(unet, seed, spread=0.9)
    return unet


def _schedule(*, learned: bool) -> Any:
    """IF's: cosine, thresholded by the picture's own brightness."""
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        prediction_type="epsilon",
        variance_type="learned_range" if learned else "fixed_small",
    )


FAMILY = DeepFloydIF()
