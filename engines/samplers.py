"""One scheduler object and one generator per row: shared with nobody.

Schedulers keep state (step index, earlier outputs), so a shared one takes silently wrong steps; and
a generator that serves a whole batch draws pictures that cannot be redone alone.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from engines.errors import BadRow
from models.family import TextToImage
from models.hosted import HostedModel


@dataclass(kw_only=True, eq=False)
class Sampling:
    """Where one row is on its way from noise to picture.

    Attributes:
        scheduler: The row's own, already set to its number of steps.
        generator: On the CPU, so that every device draws the same noise.
        timesteps: On the CPU: looking a step up must not wait for the device.
        done: Steps taken.
    """

    scheduler: Any
    generator: torch.Generator
    timesteps: Tensor
    takes_generator: bool
    done: int = 0

    @property
    def total(self) -> int:
        """Denoiser calls; some samplers make more than one per step asked for."""
        return len(self.timesteps)

    @property
    def over(self) -> bool:
        """Whether all steps are taken."""
        return self.done == self.total

    @property
    def timestep(self) -> Tensor:
        """The one that comes next."""
        return self.timesteps[self.done]

    def noise(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, draw: int = 0
    ) -> Float[Tensor, "1 c h w"]:
        """What the row starts from: drawn in float32 for this row alone, then cast.

        `draw` earlier ones are thrown away, each drawn as a picture of this shape would draw it.
        """
        for _ in range(draw):
            torch.randn((1, *shape), generator=self.generator, dtype=torch.float32)
        drawn = torch.randn((1, *shape), generator=self.generator, dtype=torch.float32)
        return drawn.to(device, dtype) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def scaled(self, latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
        """What the denoiser sees of the latents."""
        if not hasattr(self.scheduler, "scale_model_input"):  # flows read what they are
            return latents
        return self.scheduler.scale_model_input(latents, self.timestep)

    def step(
        self, said: Float[Tensor, "1 said h w"], latents: Float[Tensor, "1 c h w"]
    ) -> Float[Tensor, "1 c h w"]:
        """The latents one step on, given what the denoiser said (a variance too, with some)."""
        extra = {"generator": self.generator} if self.takes_generator else {}
        moved = self.scheduler.step(said, self.timestep, latents, **extra).prev_sample
        self.done += 1
        return moved.to(latents.dtype)


def begin(
    family: TextToImage, hosted: HostedModel, sampler: str | None, steps: int, seed: int,
    shape: tuple[int, int, int],
) -> Sampling:  # fmt: skip
    """A row's sampling before its first step, for latents of that shape.

    Raises:
        UnknownSampler: The family does not offer it.
        BadRow: The sampler cannot take so many steps, or no generator has such a seed.
    """
    scheduler: Any = family.scheduler(hosted, sampler)
    if not 0 <= seed < 2**63:
        raise BadRow("seed", f"There is no seed {seed}.", "Use a number from 0 to 2^63 - 1.")
    most = int(scheduler.config.num_train_timesteps)
    if not 1 <= steps <= most:
        raise BadRow("steps", f"No picture has {steps} steps.", f"Use 1 to {most} steps.")
    try:
        # What divides by zero is found below, whatever a caller makes of numpy's warnings.
        with np.errstate(all="ignore"):
            family.set_timesteps(hosted, scheduler, steps, shape)
    except ValueError as refused:
        raise BadRow("steps", str(refused), "Ask for fewer steps.") from refused
    if not _finite(scheduler):
        raise BadRow("steps", f"No schedule has {steps} steps.", "Use 2 or more steps.")
    if _beyond(scheduler):
        told = f"{steps} steps begin behind the last level of noise that the model was taught."
        raise BadRow("steps", told, f"Use {steps - 1} steps or fewer.")
    return Sampling(
        scheduler=scheduler,
        generator=torch.Generator().manual_seed(seed),
        timesteps=scheduler.timesteps,
        takes_generator="generator" in inspect.signature(scheduler.step).parameters,
    )


def _finite(scheduler: Any) -> bool:
    """Whether every noise level is a number; some schedules stretch from first to last step."""
    levels = (scheduler.timesteps, getattr(scheduler, "sigmas", None))
    return all(bool(np.isfinite(np.asarray(one)).all()) for one in levels if one is not None)


def _beyond(scheduler: Any) -> bool:
    """Whether it would look up a noise level behind its last: with an offset, all steps do."""
    looks_up = hasattr(scheduler, "final_alpha_cumprod")
    return looks_up and int(max(scheduler.timesteps)) >= len(scheduler.alphas_cumprod)
