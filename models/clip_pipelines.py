"""Stable Diffusion 1.x, 2.x and XL: CLIP text encoders in which facts can be edited, and a UNet."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from models.errors import WrongBase
from models.family import Conditioning, Lens, LoadOptions
from models.fingerprint import canonical, fingerprint
from models.hosted import HostedModel
from models.pipelines import Pipeline
from models.plan import Named
from models.text_tower import TextTower, Tokens

SAMPLERS = ("ddim", "dpmpp_2m", "euler", "lcm", "pndm")


class ClipPipeline(Pipeline):
    """The common part of Stable Diffusion 1.x, 2.x and XL."""

    samplers = SAMPLERS
    denoiser = "unet"
    mixes = True
    lens_norm: Any = "final norm"
    lens_beside: tuple[str, ...] = ()

    @abstractmethod
    def reachable(self, blocks: int) -> range:
        """Blocks of a text encoder whose output can change the picture."""

    def blocks(self, encoder: Any) -> nn.ModuleList:
        """CLIP's encoder layers, in both of the library's layouts."""
        return getattr(encoder, "text_model", encoder).encoder.layers

    def kept(self, pipeline: Any) -> dict[str, Any]:
        """The VAE's factor, and what an absent negative prompt becomes."""
        zero = pipeline.config.get("force_zeros_for_empty_prompt", False)
        return {**super().kept(pipeline), "zero_negative": zero}

    def text_towers(
        self, name: str, folder: Path, pipeline: Any, options: LoadOptions
    ) -> tuple[dict[str, TextTower], Any]:
        """Every encoder; the full CLIP of the first, if there is one beside it."""
        clip = self._full_clip(name, folder, pipeline.text_encoder, options)
        return {a: self._tower(a, folder, pipeline, clip, options) for a in self.towers}, clip

    def lenses(self, hosted: HostedModel) -> Mapping[str, Lens | str]:
        """Every encoder, down to what the pipeline reads of it."""
        return {
            tower.tower: Lens(
                tower=tower.tower,
                ordinary=len(tower.reachable),
                norm=self.lens_norm,
                beside=self.lens_beside,
            )
            for tower in hosted.text_towers.values()
        }

    def said(
        self,
        hosted: HostedModel,
        latents: Float[Tensor, "rows c h w"],
        timesteps: Tensor,
        sequence: Float[Tensor, "rows tokens d"],
        added: Mapping[str, Tensor | None] | None = None,
    ) -> Float[Tensor, "rows c h w"]:
        """One UNet call in the UNet's dtype; latents stay in theirs, between the steps too."""
        unet, dtype = hosted.modules["unet"], self.denoiser_dtype(hosted)
        said = unet(
            latents.to(dtype),
            timesteps,
            encoder_hidden_states=sequence,
            added_cond_kwargs=added,
        ).sample
        return said.to(latents.dtype)

    def reading_key(self, hosted: HostedModel, text: str) -> str:
        """Token ids per encoder: texts that become the same ids are read alike."""
        towers = hosted.text_towers.items()
        return repr({a: tower.tokens([text]).ids[0].tolist() for a, tower in towers})

    def _tower(
        self, attribute: str, folder: Path, pipeline: Any, clip: Any, options: LoadOptions
    ) -> TextTower:
        module = getattr(pipeline, attribute)
        own = getattr(module, "text_projection", None)
        full = clip if attribute == "text_encoder" else None
        if own is None and full is not None:
            own = full.text_projection
        return TextTower(
            attribute=attribute,
            tower=self.towers[attribute],
            module=module,
            tokenizer=getattr(pipeline, attribute.replace("text_encoder", "tokenizer")),
            projection=None if own is None else own.weight,
            reachable=self.reachable(module.config.num_hidden_layers),
            fingerprint=fingerprint(folder / attribute, options.cache),
            logit_scale=None if full is None else float(full.logit_scale.detach().exp()),
        )

    def _full_clip(self, name: str, folder: Path, encoder: Any, options: LoadOptions) -> Any:
        """The full CLIP beside the pipeline or where the options say; with the same text tower."""
        where = options.projection or folder / "clip"
        if not (where / "config.json").exists():
            return None
        clip = CLIPModel.from_pretrained(where, dtype=options.dtype, use_safetensors=True)
        ours, theirs = _weights(encoder), _weights(clip.text_model)
        if ours.keys() != theirs.keys() or any(
            not torch.equal(t, theirs[n]) for n, t in ours.items()
        ):
            here = fingerprint(folder / "text_encoder", options.cache)
            raise WrongBase(str(where), fingerprint(where, options.cache), name, here)
        clip.text_model = encoder
        return clip

    def stream_width(self, hosted: HostedModel, tower: str) -> int:
        """The encoder's hidden size."""
        return next(t.width for t in hosted.text_towers.values() if t.tower == tower)

    def multiple(self, hosted: HostedModel) -> int:
        """The UNet halves the sides once per resolution."""
        levels = len(hosted.modules["unet"].config.block_out_channels)
        return int(hosted.parts["scale"]) * 2 ** (levels - 1)

    def token_count(self, hosted: HostedModel, prompt: str) -> int:
        """The most that any encoder counts."""
        return max(tower.count(prompt) for tower in hosted.text_towers.values())

    def prompt_limit(self, hosted: HostedModel) -> int:
        """The shortest encoder's positions."""
        return min(tower.max_length for tower in hosted.text_towers.values())


def named_positions(tokens: Tokens) -> list[Named]:
    """What `prompt` and `last` mean in each row: up to [EOS], and [EOS] itself."""
    ends = tokens.eos.tolist()
    return [{"prompt": tuple(range(end + 1)), "last": (end,)} for end in ends]


def zeroed(conditioning: Conditioning, rows: Sequence[int]) -> Conditioning:
    """The same with zeros in some rows: what SDXL reads when no negative prompt is given."""
    index = torch.tensor(rows, dtype=torch.long, device=conditioning.sequence.device)
    pooled = conditioning.pooled
    return Conditioning(
        sequence=conditioning.sequence.index_fill(0, index, 0.0),
        pooled=None if pooled is None else pooled.index_fill(0, index, 0.0),
        sizes=conditioning.sizes,
    )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A text model's tensors under historic names, without a projection."""
    named = {canonical(name): tensor for name, tensor in module.state_dict().items()}
    return {n: t for n, t in named.items() if n is not None and n.startswith("text_model.")}
