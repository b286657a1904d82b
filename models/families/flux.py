"""FLUX.1: CLIP's pooled vector and T5's sequence; dev reads the guidance scale, schnell none.

The lens looks at T5. Below its ordinary layer the pooled vector says the empty prompt unless asked.
Guidance is distilled, so no negative prompt is read. Covered: dev (512 tokens) and schnell (256).
Not covered: true classifier-free guidance, image prompts, the fill, depth and Kontext pipelines.
CLIP reads the first 77 tokens of a prompt, as in the stock pipeline; T5 must read all of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from models.errors import NegativeUnread
from models.family import Beside, Conditioning
from models.hosted import HostedModel
from models.patch import Patch
from models.pipelines import dynamic_shift, read_by
from models.t5_pipelines import T5Pipeline
from models.toys import seeded, text_model_of, toy_clip, toy_tokenizer, wake
from models.toys_t5 import toy_flow, toy_flow_vae, toy_t5, toy_t5_tokenizer


class Flux(T5Pipeline):
    """FLUX.1 dev and schnell."""

    kind = "flux"
    title = "FLUX.1"
    pipelines = ("FluxPipeline",)
    pipeline = FluxPipeline
    towers = {"text_encoder": "text", "text_encoder_2": "text_2"}  # noqa: RUF012
    t5 = "text_encoder_2"
    samplers = ("flow_euler",)
    default_steps, default_guidance = 28, 3.5
    applies = {  # noqa: RUF012
        "refact": "it reaches the picture only through the 768-wide pooled vector: a weak effect "
        "is expected.",
        "lora": "a fact adapter of its CLIP reaches the picture only through the 768-wide pooled "
        "vector: a weak effect is expected.",
        "diffusion_lens": None,
        "sae": "there are no published dictionaries for its text encoders.",
        "control_vector": None,
        "back_patch": "there are no visual tokens in a text encoder.",
    }
    lens_beside = ("CLIP's pooled vector",)

    def length(self, pipeline: Any) -> int:
        """Of dev, which reads the guidance scale; of schnell, which does not."""
        return 512 if pipeline.transformer.config.guidance_embeds else 256

    def left_out(self) -> dict[str, Any]:
        """No image prompts."""
        return {"image_encoder": None, "feature_extractor": None}

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """With the side in latents for which the pipeline was made: its configuration lacks it."""
        return {**super().kept(pipeline), "side": pipeline.default_sample_size}

    def multiple(self, hosted: HostedModel) -> int:
        """Latents are packed two by two."""
        return 2 * int(hosted.parts["scale"])

    def channels(self, hosted: HostedModel) -> int:
        """Of latents that are not packed."""
        return int(hosted.modules["transformer"].config.in_channels) // 4

    def default_size(self, hosted: HostedModel) -> tuple[int, int]:
        """The pipeline's own."""
        side = int(hosted.parts["side"] * hosted.parts["scale"])
        return side, side

    def set_timesteps(
        self,
        hosted: HostedModel,  # noqa: ARG002 - packing is always two by two
        scheduler: Any,
        steps: int,
        shape: tuple[int, int, int],
    ) -> None:
        """From noise to 1/steps in equal parts, shifted by the size where the schedule is."""
        tokens = (shape[1] // 2) * (shape[2] // 2)
        mu = dynamic_shift(scheduler.config, tokens)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    def is_guided(self, guidance: float) -> bool:  # noqa: ARG002
        """Never: there is no negative beside a row."""
        return False

    def with_guidance(
        self, hosted: HostedModel, conditioning: Conditioning, guidance: float
    ) -> Conditioning:
        """With the scale where the transformer reads it; schnell does not."""
        if not hosted.modules["transformer"].config.guidance_embeds:
            return conditioning
        states = conditioning.sequence
        scale = states.new_full((len(states),), guidance, dtype=torch.float32)
        return replace(conditioning, guidance=scale)

    def check_negative(self, hosted: HostedModel, prompt: str | None) -> None:  # noqa: ARG002
        """NegativeUnread: it would change nothing."""
        if prompt:
            raise NegativeUnread(self.title, "its guidance is distilled")

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),
    ) -> Conditioning:
        """T5's states; CLIP's pooled vector, of what `beside` says where a row leaves T5 early."""
        read = {a: read_by(t, prompts, patches, beside) for a, t in self.towers.items()}
        clip = self.tokens(hosted, "text_encoder", read["text_encoder"])
        with self.changed(hosted, "text_encoder", clip, patches):
            states = hosted.modules["text_encoder"](input_ids=clip.ids.to(hosted.device))
        tokens = self.tokens(hosted, self.t5, read[self.t5])
        return Conditioning(self.t5_states(hosted, tokens, patches), states.pooler_output)

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One transformer call on packed latents."""
        height, width = latents.shape[2] // 2, latents.shape[3] // 2
        said = hosted.modules["transformer"](
            # Contiguous as the stock pipeline's: in bfloat16 the layout decides the last bits.
            hidden_states=pixel_unshuffle(latents, 2).flatten(2).mT.contiguous(),
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=conditioning.guidance,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=conditioning.sequence,
            txt_ids=latents.new_zeros(conditioning.sequence.shape[1], 3),
            img_ids=_places(height, width).to(latents),
        ).sample
        return pixel_shuffle(said.mT.unflatten(2, (height, width)), 2)

    def tiny(self, folder: Path, seed: int = 0, *, schnell: bool = False) -> Path:
        """A random pipeline of about a megabyte; schnell reads no scale and shifts nothing."""
        with seeded(seed):
            tokenizer = toy_tokenizer(folder / "tokenizer")
            tokenizer_2 = toy_t5_tokenizer(folder / "tokenizer_2")
            FluxPipeline(
                scheduler=toy_flow(shift=1.0 if schnell else 3.0, use_dynamic_shifting=not schnell),
                vae=toy_flow_vae(seed + 4, channels=16),
                text_encoder=text_model_of(toy_clip(tokenizer, seed)),
                tokenizer=tokenizer,
                text_encoder_2=toy_t5(tokenizer_2, seed + 2),
                tokenizer_2=tokenizer_2,
                transformer=_transformer(seed + 3, guided=not schnell),
                **self.left_out(),
            ).save_pretrained(folder)
        return folder


def _places(height: int, width: int) -> Float[Tensor, "places 3"]:
    """Row and column of each packed latent; text stands at (0, 0, 0)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def _transformer(seed: int, *, guided: bool) -> FluxTransformer2DModel:
    """One double and one single block; 64 = 16 channels, packed two by two."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    wake(transformer, seed, spread=0.9)
    return transformer


FAMILY = Flux()
