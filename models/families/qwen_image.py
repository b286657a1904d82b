"""Qwen-Image: Qwen2.5-VL as text encoder, an MMDiT on packed latents, a video VAE of one frame.

The stock pipeline pads to the longest prompt of a call, so that neighbours choose a row's shapes;
here every prompt and negative is padded to one length (`tiller.json`: `text_tokens`, 512 as in the
stock call) and masked. That is exact: rotary positions of text count from the first token, so what
is appended moves none of them, and no token looks at a masked one. Covered: guidance with a
negative, rescaled to the prompt's norm. Not covered: guidance-distilled and editing checkpoints.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from jaxtyping import Float
from torch import Tensor

from models.errors import UnknownSetting
from models.family import Beside, Conditioning, LoadOptions
from models.hosted import HostedModel
from models.lm_encoder import LanguagePipeline, Window
from models.patch import Patch
from models.pipelines import dynamic_shift
from models.toys import seeded
from models.toys_lm import (
    toy_qwen,
    toy_qwen_denoiser,
    toy_qwen_flow,
    toy_qwen_tokenizer,
    toy_qwen_vae,
)

_READ = 512
"""Tokens that the denoiser reads, unless the model's `tiller.json` says otherwise."""
_LEAST, _MOST = 16, 1024
"""Bounds of that setting: some words and the template's end, and what the stock pipeline takes."""
_NEGATIVE = " "


class QwenImage(LanguagePipeline):
    """Qwen-Image text-to-image."""

    kind = "qwen_image"
    title = "Qwen-Image"
    pipelines = ("QwenImagePipeline",)
    pipeline = QwenImagePipeline
    samplers = ("flow_euler",)
    default_steps, default_guidance = 50, 4.0

    def load(self, name: str, folder: Path, options: LoadOptions) -> HostedModel:
        """Host the pipeline of the folder.

        Raises:
            UnknownSetting: Its `tiller.json` states no such number of tokens.
            UnsupportedFamily, NotSafetensors: As every pipeline.
        """
        read = options.defaults.get("text_tokens", _READ)
        if type(read) is not int or not _LEAST <= read <= _MOST:
            known = f"a whole number from {_LEAST} to {_MOST}"
            raise UnknownSetting("text_tokens", str(read), known)
        return super().load(name, folder, options)

    def stack(self, encoder: Any) -> Any:
        """The language model alone: no vision tower, no head over the vocabulary."""
        return encoder.model.language_model

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """Also the template around a prompt and the size that the model was made for."""
        return {
            **super().kept(pipeline),
            "template": pipeline.prompt_template_encode,
            "dropped": pipeline.prompt_template_encode_start_idx,
            "sample": pipeline.default_sample_size,
        }

    @torch.inference_mode()
    def encode(
        self,
        hosted: HostedModel,
        prompts: Sequence[str],
        patches: Sequence[Patch],
        beside: Sequence[Beside] = (),  # noqa: ARG002 - the sequence is the only path
    ) -> Conditioning:
        """Inside the template, whose first tokens are dropped; zeros where padding was."""
        first, read = hosted.parts["dropped"], self.prompt_limit(hosted)
        window = Window(length=first + read, columns=tuple(range(first, first + read)))
        said = self.read(hosted, [self._ids(hosted, p) for p in prompts], patches, window)
        nothing = (said.mask == 0)[..., None]
        return Conditioning(said.sequence.masked_fill(nothing, 0.0), mask=said.mask)

    def encode_negative(
        self, hosted: HostedModel, prompts: Sequence[str | None], patches: Sequence[Patch]
    ) -> Conditioning:
        """As `encode`; the default is a space.

        The stock pipeline does not guide at all where no negative is given; its makers' examples
        give a space. A row that asks for a guidance scale is guided here.
        """
        texts = [_NEGATIVE if prompt is None else prompt for prompt in prompts]
        return self.encode(hosted, texts, patches)

    def _ids(self, hosted: HostedModel, prompt: str) -> list[int]:
        return hosted.parts["words"].ids(hosted.parts["template"].format(prompt))

    @torch.inference_mode()
    def denoise(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Float[Tensor, "rows c h w"]:
        """One call of the transformer, on latents packed two by two."""
        rows, _, height, width = latents.shape
        said = hosted.modules["transformer"](
            hidden_states=packed(latents),
            encoder_hidden_states=conditioning.sequence,
            encoder_hidden_states_mask=conditioning.mask,
            timestep=timesteps.to(latents.dtype) / 1000,
            img_shapes=[[(1, height // 2, width // 2)]] * rows,
        ).sample
        return unpacked(said, height, width)

    def guide(self, conditional: Tensor, unconditional: Tensor, guidance: Tensor) -> Tensor:
        """Classifier-free guidance that keeps the length of what the prompt says, per token."""
        mixed = packed(super().guide(conditional, unconditional, guidance))
        norms = [torch.norm(x, dim=-1, keepdim=True) for x in (packed(conditional), mixed)]
        return unpacked(mixed * (norms[0] / norms[1]), *conditional.shape[2:])

    def set_timesteps(
        self,
        hosted: HostedModel,  # noqa: ARG002 - the schedule depends on the size alone
        scheduler: Any,
        steps: int,
        shape: tuple[int, int, int],
    ) -> None:
        """Evenly, then shifted by how many tokens the picture has."""
        tokens = shape[1] // 2 * (shape[2] // 2)
        mu = dynamic_shift(scheduler.config, tokens)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        scheduler.set_begin_index(0)

    @torch.inference_mode()
    def decode(self, hosted: HostedModel, latents: Tensor) -> Float[Tensor, "rows 3 height width"]:
        """The first frame of the VAE; pictures from 0 to 1 in float32."""
        vae = hosted.modules["vae"]
        frames = latents[:, :, None].to(vae.dtype)
        stated = (vae.config.latents_mean, vae.config.latents_std)
        mean, spread = (torch.tensor(v).view(1, -1, 1, 1, 1).to(frames) for v in stated)
        # Twice a reciprocal, as the stock pipeline rounds it in bfloat16.
        images = vae.decode(frames / (1.0 / spread) + mean).sample[:, :, 0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def multiple(self, hosted: HostedModel) -> int:
        """Latents are packed two by two."""
        return 2 * int(hosted.parts["scale"])

    def channels(self, hosted: HostedModel) -> int:
        """A token of the transformer is four latent pixels."""
        return int(hosted.modules["transformer"].config.in_channels) // 4

    def default_size(self, hosted: HostedModel) -> tuple[int, int]:
        """The pipeline's own."""
        side = int(hosted.parts["sample"] * hosted.parts["scale"])
        return side, side

    def token_count(self, hosted: HostedModel, prompt: str) -> int:
        """What the denoiser reads of it: the prompt's own and those that close the template."""
        return len(self._ids(hosted, prompt)) - hosted.parts["dropped"]

    def prompt_limit(self, hosted: HostedModel) -> int:
        """`text_tokens` of the model's `tiller.json`, else 512 as in the stock call."""
        return int(hosted.defaults.get("text_tokens", _READ))

    def tiny(self, folder: Path, seed: int = 0) -> Path:
        """A random pipeline of about a megabyte."""
        absent: Any = None  # the tokenizer knows the template's words, which the pipeline holds
        with seeded(seed):
            pipeline = QwenImagePipeline(
                scheduler=toy_qwen_flow(),
                vae=toy_qwen_vae(seed),
                text_encoder=absent,
                tokenizer=absent,
                transformer=toy_qwen_denoiser(seed),
            )
            tokenizer = toy_qwen_tokenizer(pipeline.prompt_template_encode)
            pipeline.register_modules(tokenizer=tokenizer, text_encoder=toy_qwen(tokenizer, seed))
            pipeline.save_pretrained(folder)
        return folder


def packed(latents: Float[Tensor, "rows c h w"]) -> Float[Tensor, "rows tokens c4"]:
    """Two by two latent pixels side by side: a token of the transformer."""
    rows, channels, height, width = latents.shape
    patches = latents.view(rows, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * 4)


def unpacked(
    tokens: Float[Tensor, "rows tokens c4"], height: int, width: int
) -> Float[Tensor, "rows c h w"]:
    """The inverse of `packed`."""
    rows, _, wide = tokens.shape
    patches = tokens.view(rows, height // 2, width // 2, wide // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(rows, wide // 4, height, width)


FAMILY = QwenImage()
