"""Sana 1.0 and 1.5: Gemma 2 as text encoder, a linear DiT, a DC-AE that compresses 32 times.

As the stock pipeline's call does it: an instruction in front of the prompt (not of the negative),
lower case, 300 tokens read, padding masked in the encoder and in the denoiser. Covered: sizes as
asked for. Not covered: resolution binning, which draws another size and resizes; caption cleaning;
Sana Sprint, whose denoiser reads the guidance scale.
"""

import inspect
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from jaxtyping import Float
from torch import Tensor

from models.family import Beside, Conditioning
from models.hosted import HostedModel
from models.lm_encoder import APPLIES, LanguagePipeline, Window
from models.patch import Patch
from models.pipelines import blanked
from models.toys import seeded
from models.toys_lm import toy_dc, toy_flow_solver, toy_gemma, toy_gemma_tokenizer, toy_sana

_READ = 300
"""Tokens that the denoiser reads."""
_SIDES = 32
"""The stock pipeline refuses sides that are no multiple of this, whatever the model."""


class Sana(LanguagePipeline):
    """Sana text-to-image."""

    kind = "sana"
    title = "Sana"
    pipelines = ("SanaPipeline",)
    pipeline = SanaPipeline
    samplers = ("dpmpp_2m", "flow_euler")
    default_steps, default_guidance = 20, 4.5
    applies = {  # noqa: RUF012 - read only, as the base says
        **APPLIES,
        "sae": "the published dictionaries (Gemma Scope) are of Gemma 2 as a language model; that "
        "they fit the encoder of a picture model is not shown.",
    }

    def stack(self, encoder: Any) -> Any:
        """A `Gemma2Model` is nothing but its stack."""
        return encoder

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """Also how many tokens the instruction in front of a prompt has."""
        kept = super().kept(pipeline)
        return {**kept, "instruction": len(kept["words"].ids(instruction()))}

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),  # noqa: ARG002 - the sequence is the only path
    ) -> Conditioning:
        """Behind the instruction; [BOS] and the last 299 positions are kept, padding included."""
        rows = [self._ids(hosted, prompt, instruction()) for prompt in prompts]
        return self.read(hosted, rows, patches, self._window(hosted))

    def encode_negative(
        self, hosted: HostedModel, prompts: Sequence[str | None], patches: Sequence[Patch]
    ) -> Conditioning:
        """Without the instruction; the default is the empty text."""
        rows = [self._ids(hosted, prompt) for prompt in blanked(prompts)]
        return self.read(hosted, rows, patches, Window(length=_READ, columns=tuple(range(_READ))))

    def _ids(self, hosted: HostedModel, text: str, before: str = "") -> list[int]:
        """Of a text as the pipeline prepares one that is not to be cleaned."""
        return hosted.parts["words"].ids(before + text.lower().strip())

    def _window(self, hosted: HostedModel) -> Window:
        """The pipeline keeps the instruction's last token, which may melt into the prompt."""
        first = hosted.parts["instruction"] - 1
        length = first + _READ - 1
        return Window(length=length, columns=(0, *range(first, length)))

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One call of the transformer; a variance that it may predict as well is left out.

        Only what the transformer reads is cast: latents and guidance stay in float32.
        """
        transformer = hosted.modules["transformer"]
        said = transformer(
            latents.to(hosted.dtype),
            encoder_hidden_states=conditioning.sequence,
            encoder_attention_mask=conditioning.mask,
            timestep=timesteps * transformer.config.timestep_scale,
        ).sample
        return said[:, : latents.shape[1]].float()

    def latents_dtype(self, hosted: HostedModel) -> torch.dtype:  # noqa: ARG002
        """As in the stock pipeline, whatever the model computes in."""
        return torch.float32

    def multiple(self, hosted: HostedModel) -> int:
        """Whole patches, and what the stock pipeline accepts."""
        patch = int(hosted.modules["transformer"].config.patch_size)
        return math.lcm(_SIDES, int(hosted.parts["scale"]) * patch)

    def token_count(self, hosted: HostedModel, prompt: str) -> int:
        """What the denoiser reads of it, [BOS] included; as a prompt or as a negative, the more.

        Of a prompt that is the instruction's last token too.
        """
        behind = len(self._ids(hosted, prompt, instruction())) - hosted.parts["instruction"]
        return max(behind + 2, len(self._ids(hosted, prompt)))

    def prompt_limit(self, hosted: HostedModel) -> int:  # noqa: ARG002 - of every Sana
        """What the pipeline keeps."""
        return _READ

    def _templates(self, pipeline: Any) -> dict[str | None, Any]:
        """Both samplers walk the same flow, whichever of them the checkpoint ships."""
        config = pipeline.scheduler.config
        shift = float(config.get("flow_shift", config.get("shift", 1.0)))
        solver = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction"
        )
        euler = FlowMatchEulerDiscreteScheduler(shift=shift)
        return {None: pipeline.scheduler, "dpmpp_2m": solver, "flow_euler": euler}

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """A random pipeline of less than a megabyte."""
        with seeded(seed):
            tokenizer = toy_gemma_tokenizer(instruction())
            SanaPipeline(
                tokenizer=tokenizer,
                text_encoder=toy_gemma(tokenizer, seed),
                vae=toy_dc(seed),
                transformer=toy_sana(seed),
                scheduler=toy_flow_solver(),
            ).save_pretrained(folder)
        return folder


@cache
def instruction() -> str:
    """What the stock pipeline puts in front of a prompt, as the installed library states it."""
    call = inspect.signature(SanaPipeline.__call__)
    return "\n".join(call.parameters["complex_human_instruction"].default)


FAMILY = Sana()
