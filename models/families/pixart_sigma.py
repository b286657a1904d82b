"""PixArt-Sigma: T5 alone, read through a mask by the encoder and by the transformer.

The lens looks at every layer. Prompts are put into lower case, as the stock pipeline does without
its caption cleaning. Covered: learned and fixed variance (a learned one is dropped, as the stock
pipeline drops it). Not covered: resolution binning (sizes are drawn as asked for, as the stock
pipeline does with `use_resolution_binning=False`), caption cleaning, PixArt-alpha.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from models.errors import UnsupportedFamily
from models.family import Beside, Conditioning
from models.hosted import HostedModel
from models.patch import Patch
from models.t5_pipelines import T5Pipeline, lowered
from models.toys import seeded, toy_vae, wake
from models.toys_t5 import toy_t5, toy_t5_tokenizer


class PixArtSigma(T5Pipeline):
    """PixArt-Sigma at all its sizes."""

    kind = "pixart_sigma"
    title = "PixArt-Sigma"
    pipelines = ("PixArtSigmaPipeline",)
    pipeline = PixArtSigmaPipeline
    towers = {"text_encoder": "text"}  # noqa: RUF012 - read only, as the base says
    t5 = "text_encoder"
    masked = True
    samplers = ("dpmpp_2m", "ddim", "euler")
    default_steps, default_guidance = 20, 4.5
    # The model's own schedule is evenly spaced, ends included; DDIM's steps are all of one length.
    stated = {  # noqa: RUF012
        "ddim": {
            "clip_sample": False,
            "set_alpha_to_one": True,
            "steps_offset": 0,
            "timestep_spacing": "trailing",
        },
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
        """The stock pipeline's."""
        return 300

    def as_read(self, text: str) -> str:
        """In lower case."""
        return lowered(text)

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """UnsupportedFamily for a transformer that reads sizes: the stock pipeline has none."""
        if pipeline.transformer.use_additional_conditions:
            raise UnsupportedFamily("a PixArt that reads sizes (PixArt-alpha)", self.title)
        return super().kept(pipeline)

    def multiple(self, hosted: HostedModel) -> int:
        """The transformer cuts latents into patches."""
        return int(hosted.parts["scale"] * hosted.modules["transformer"].config.patch_size)

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),  # noqa: ARG002 - the sequence is the only path
    ) -> Conditioning:
        """T5's states, and which of them are the prompt's."""
        tokens = self.tokens(hosted, self.t5, prompts)
        states = self.t5_states(hosted, tokens, patches)
        return Conditioning(states, mask=tokens.mask.to(hosted.device))

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One transformer call, without the variance that some transformers say as well."""
        said = hosted.modules["transformer"](
            latents,
            encoder_hidden_states=conditioning.sequence,
            encoder_attention_mask=conditioning.mask,
            timestep=timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        return said[:, : latents.shape[1]]

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """A random pipeline of about a megabyte."""
        scheduler: Any = DPMSolverMultistepScheduler()
        with seeded(seed):
            tokenizer = toy_t5_tokenizer(folder / "tokenizer")
            PixArtSigmaPipeline(
                tokenizer=tokenizer,
                text_encoder=toy_t5(tokenizer, seed),
                vae=toy_vae(seed),
                transformer=_transformer(seed + 1),
                scheduler=scheduler,
            ).save_pretrained(folder)
        return folder


def _transformer(seed: int) -> PixArtTransformer2DModel:
    """Two blocks that also say a variance, with peaked cross-attention."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        cross_attention_dim=32,
        in_channels=4,
        out_channels=8,
    )
    wake(transformer, seed, spread=0.9, peaked=2.0)
    return transformer


FAMILY = PixArtSigma()
