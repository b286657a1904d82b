"""Stable Diffusion 3 and 3.5: two CLIPs, read before their last blocks, and T5 behind them.

The lens looks at T5. Below its ordinary layer the CLIPs, in the sequence and in the pooled vector,
say the empty prompt unless asked. Covered: both schedules (with and without a shift by size). Not
covered: a pipeline without its T5, skip-layer guidance, image prompts. CLIP reads the first 77
tokens of a prompt, as in the stock pipeline; T5 must read all of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from models.errors import BadSize
from models.family import Beside, Conditioning
from models.hosted import HostedModel
from models.patch import Exit, Patch
from models.pipelines import dynamic_shift, leaving, read_by, replaced
from models.site import block
from models.t5_pipelines import T5Pipeline
from models.toys import seeded, toy_tokenizer, wake
from models.toys_t5 import toy_flow, toy_flow_vae, toy_projected_clip, toy_t5, toy_t5_tokenizer


class StableDiffusion3(T5Pipeline):
    """SD3 medium, SD3.5 medium and large."""

    kind = "stable_diffusion_3"
    title = "Stable Diffusion 3"
    pipelines = ("StableDiffusion3Pipeline",)
    pipeline = StableDiffusion3Pipeline
    towers = {  # noqa: RUF012 - read only, as the base says
        "text_encoder": "text",
        "text_encoder_2": "text_2",
        "text_encoder_3": "text_3",
    }
    t5 = "text_encoder_3"
    samplers = ("flow_euler",)
    default_steps, default_guidance = 28, 7.0
    applies = {  # noqa: RUF012
        "refact": "T5 carries the long text and is not CLIP: an edit of its CLIPs alone is not "
        "the fact.",
        "lora": "T5 carries the long text and is not CLIP: a fact adapter changes CLIPs only.",
        "diffusion_lens": None,
        "sae": "there are no published dictionaries for its text encoders.",
        "control_vector": None,
        "back_patch": "there are no visual tokens in a text encoder.",
    }
    lens_beside = ("both CLIPs in the sequence", "the CLIPs' pooled vector")

    def length(self, pipeline: Any) -> int:  # noqa: ARG002
        """The stock pipeline's."""
        return 256

    def left_out(self) -> dict[str, Any]:
        """No image prompts."""
        return {"image_encoder": None, "feature_extractor": None}

    def multiple(self, hosted: HostedModel) -> int:
        """The transformer cuts latents into patches."""
        return int(hosted.parts["scale"] * hosted.modules["transformer"].config.patch_size)

    def latent_shape(self, hosted: HostedModel, height: int, width: int) -> tuple[int, int, int]:
        """BadSize for sides that are not whole patches, or more than there are positions for."""
        multiple = self.multiple(hosted)
        most = multiple * int(hosted.modules["transformer"].config.pos_embed_max_size)
        if max(height, width) > most:
            raise BadSize(height, width, multiple, most)
        return super().latent_shape(hosted, height, width)

    def set_timesteps(
        self, hosted: HostedModel, scheduler: Any, steps: int, shape: tuple[int, int, int]
    ) -> None:
        """Shifted by the picture's size where the model's schedule asks for it."""
        patch = hosted.modules["transformer"].config.patch_size
        tokens = (shape[1] // patch) * (shape[2] // patch)
        shifts = scheduler.config.use_dynamic_shifting
        mu = {"mu": dynamic_shift(scheduler.config, tokens)} if shifts else {}
        scheduler.set_timesteps(steps, **mu)

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),
    ) -> Conditioning:
        """The CLIPs' streams side by side, filled up to T5's width; T5 behind them; pooled vectors.

        Pooled vectors are always read at full depth, of the prompt that `beside` says: where a row
        leaves a CLIP early, that is a pass of its own, which is not counted again.
        """
        clips = [encoder for encoder in self.towers if encoder != self.t5]
        read = {t: read_by(t, prompts, patches, beside) for t in self.towers.values()}
        found = [self._clip(hosted, a, read[self.towers[a]], patches) for a in clips]
        pooled = torch.cat([vector for _, vector in found], dim=-1)
        short = {self.towers[a] for a in clips}
        if gone := [row for row, patch in enumerate(patches) if leaving(patch) & short]:
            around = read_by("", prompts, patches, beside)
            own, whole = [around[row] for row in gone], [patches[row].without(Exit) for row in gone]
            with hosted.untallied():
                vectors = [self._clip(hosted, a, own, whole)[1] for a in clips]
            pooled = replaced(pooled, gone, torch.cat(vectors, dim=-1))
        tokens = self.tokens(hosted, self.t5, read[self.towers[self.t5]])
        long = self.t5_states(hosted, tokens, patches)
        short = torch.cat([states for states, _ in found], dim=-1)
        short = pad(short, (0, long.shape[-1] - short.shape[-1]))
        return Conditioning(torch.cat([short, long], dim=1), pooled)

    def _clip(
        self, hosted: HostedModel, encoder: str, texts: Sequence[str], patches: Sequence[Patch]
    ) -> tuple[Float[Tensor, "rows tokens d"], Float[Tensor, "rows p"]]:
        """What enters the last block, and the projected pooled vector."""
        tokens, tower = self.tokens(hosted, encoder, texts), self.towers[encoder]
        # Own capture: what the library records as hidden_states depends on the order of hooks.
        site = block(tower, len(hosted.towers[tower]) - 2)
        with hosted.captured(site) as seen, self.changed(hosted, encoder, tokens, patches):
            pooled = hosted.modules[encoder](input_ids=tokens.ids.to(hosted.device)).text_embeds
        return seen[site][-1], pooled

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One transformer call."""
        return hosted.modules["transformer"](
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=conditioning.sequence,
            pooled_projections=conditioning.pooled,
        ).sample

    def tiny(self, folder: Path, seed: int = 0, *, shifts: bool = False) -> Path:
        """A random pipeline of about a megabyte; `shifts` as in SD3.5's schedules by size."""
        with seeded(seed):
            tokenizers = [
                toy_tokenizer(folder / "tokenizer"),
                toy_tokenizer(folder / "tokenizer_2", pad="!"),
            ]
            clips = [toy_projected_clip(t, seed + i) for i, t in enumerate(tokenizers)]
            tokenizer_3 = toy_t5_tokenizer(folder / "tokenizer_3")
            StableDiffusion3Pipeline(
                transformer=_transformer(seed + 3),
                scheduler=toy_flow(shift=3.0, use_dynamic_shifting=shifts),
                vae=toy_flow_vae(seed + 4, channels=16),
                text_encoder=clips[0],
                tokenizer=tokenizers[0],
                text_encoder_2=clips[1],
                tokenizer_2=tokenizers[1],
                text_encoder_3=toy_t5(tokenizer_3, seed + 2, width=72),
                tokenizer_3=tokenizer_3,
                **self.left_out(),
            ).save_pretrained(folder)
        return folder


def _transformer(seed: int) -> SD3Transformer2DModel:
    """Two joint blocks, the first with SD3.5's second attention; 48 = both pooled vectors."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=72,
        pooled_projection_dim=48,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    wake(transformer, seed, spread=0.9)
    return transformer


FAMILY = StableDiffusion3()
