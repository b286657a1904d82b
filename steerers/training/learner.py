"""An SAE while it learns: its parameters, its losses, and what it becomes.

It reads x / c, c the scale that gives the mean token the norm sqrt(d). Decoder rows have unit norm
after every step. TopK and BatchTopK subtract the decoder's bias from the input, JumpReLU does not;
at the end c is folded into biases and thresholds, as in Gemma Scope, so rows stay of unit norm.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from steerers.activation import Activation, JumpReLU, TopK
from steerers.dictionary import Dictionary
from steerers.training.recipe import Recipe, Wanted

_THRESHOLD_MEMORY = 0.95


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of one batch.

    Attributes:
        total: What is minimised.
        fvu: Fraction of the variance that is not explained.
        l0: Mean number of active features per token.
        active: Which features were active.
    """

    total: Float[Tensor, ""]
    fvu: float
    l0: float
    active: Bool[Tensor, " features"]


class Learner(nn.Module):
    """One SAE in training.

    Args:
        wanted: Which.
        recipe: How.
        first: Tokens of its site, from which scale, bias and threshold begin.
    """

    quiet: Float[Tensor, " features"]

    def __init__(self, wanted: Wanted, recipe: Recipe, first: Float[Tensor, "tokens d"]) -> None:
        super().__init__()
        self.wanted, self.recipe = wanted, recipe
        d, device = first.shape[1], first.device
        self.scale = float(first.square().sum(1).mean().sqrt()) / d**0.5
        x = first / self.scale
        self.variance = float((x - x.mean(0)).square().sum(1).mean())
        draw = torch.Generator().manual_seed(recipe.seed)
        rows = torch.randn(wanted.features, d, generator=draw).to(device)
        self.decoder = nn.Parameter(nn.functional.normalize(rows, dim=1))
        self.encoder = nn.Parameter(self.decoder.detach().T.clone())
        self.decoder_bias = nn.Parameter(x.mean(0))
        self.encoder_bias = nn.Parameter(torch.zeros(wanted.features, device=device))
        if wanted.kind == "jumprelu":
            self.encoder_bias.data -= x.mean(0) @ self.encoder
        start = self._begin(x[: recipe.batch], 2 * wanted.l0)
        self.log_threshold = nn.Parameter(
            torch.full((wanted.features,), start, device=device).log()
        )
        self.log_threshold.requires_grad_(wanted.kind == "jumprelu")
        self.register_buffer("quiet", torch.zeros(wanted.features, device=device))
        self.mean_threshold = start

    @property
    def weights(self) -> list[nn.Parameter]:
        """All parameters but the thresholds."""
        return [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]

    @torch.no_grad()
    def _begin(self, x: Float[Tensor, "tokens d"], l0: int) -> float:
        """The threshold that lets `l0` features per token pass.

        Encoder and threshold are scaled so that the sum of what passes is neither too long nor too
        short: with rows as long as the decoder's the first steps would push nearly all features
        below their thresholds.
        """
        z = self.pre_activations(x)
        kept = min(z.numel(), max(1, l0 * len(x)))
        start = max(1e-3, float(z.flatten().topk(kept).values[-1]))
        rebuilt, wanted = (z * (z > start)) @ self.decoder, x - self.decoder_bias
        factor = float((rebuilt * wanted).sum() / rebuilt.square().sum().clamp_min(1e-12))
        factor = min(1.0, max(factor, 1e-2))
        self.encoder.data *= factor
        self.encoder_bias.data *= factor
        return start * factor

    def pre_activations(self, x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens features"]:
        """What the activation function reads; x is scaled already."""
        u = x if self.wanted.kind == "jumprelu" else x - self.decoder_bias
        return u @ self.encoder + self.encoder_bias

    def losses(self, tokens: Float[Tensor, "tokens d"], warm: float) -> Losses:
        """Reconstruction, sparsity and revival on tokens as they come from the site.

        Args:
            tokens: A batch.
            warm: Share of the sparsity's weight that counts yet.
        """
        x = tokens / self.scale
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            z = self.pre_activations(x).float()
            codes = self._codes(z)
            rebuilt = (codes @ self.decoder).float() + self.decoder_bias
        left = x - rebuilt
        fvu = left.square().sum(1).mean() / self.variance
        active = codes.detach() > 0
        l0 = float(active.sum()) / len(x)
        total = fvu
        if self.wanted.kind == "jumprelu":
            passed = _Step.apply(z, self.log_threshold.exp(), self.recipe.bandwidth)
            share = passed.sum(1).mean() / self.wanted.l0
            total = total + warm * self.recipe.sparsity * (share - 1).square()
        total = total + self.recipe.revival * self._revival(z, left.detach())
        return Losses(total=total, fvu=float(fvu.detach()), l0=l0, active=active.any(0))

    def _codes(self, z: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens features"]:
        match self.wanted.kind:
            case "jumprelu":
                theta = self.log_threshold.exp()
                return _Jump.apply(z.relu(), theta, self.recipe.bandwidth)
            case "topk":
                return TopK(self.wanted.l0)(z)
            case "batchtopk":
                return self._batch_top_k(z)

    def _batch_top_k(self, z: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens features"]:
        """The k * tokens largest of the batch; a mean of the smallest of them is remembered."""
        least = z.detach().flatten().topk(self.wanted.l0 * len(z)).values[-1].clamp_min(0)
        old = self.mean_threshold
        self.mean_threshold = old + (1 - _THRESHOLD_MEMORY) * (float(least) - old)
        return z.relu() * (z >= least)

    def _revival(
        self, z: Float[Tensor, "tokens features"], left: Float[Tensor, "tokens d"]
    ) -> Float[Tensor, ""]:
        """How badly dead features alone rebuild what the living leave over."""
        dead = (self.quiet > self.recipe.dead_after).nonzero()[:, 0]
        k = min(left.shape[1] // 2, len(dead))
        if not k:
            return left.new_zeros(())
        rebuilt = TopK(k)(z[:, dead]) @ self.decoder[dead]
        spread = left.square().sum(1).mean().clamp_min(1e-12)
        return ((left - rebuilt).square().sum(1).mean() / spread).nan_to_num(0.0)

    @torch.no_grad()
    def before_step(self) -> None:
        """Take out of the decoder's gradient what would only change the rows' norms."""
        if self.decoder.grad is not None:
            along = (self.decoder.grad * self.decoder).sum(1, keepdim=True)
            self.decoder.grad -= along * self.decoder

    @torch.no_grad()
    def after_step(self, active: Bool[Tensor, " features"], tokens: int) -> None:
        """Unit rows again; features that were active are no longer quiet."""
        self.decoder.data = nn.functional.normalize(self.decoder.data, dim=1)
        self.quiet += tokens
        self.quiet[active] = 0

    @torch.no_grad()
    def dictionary(self, model: str | None = None) -> Dictionary:
        """The SAE that reads the stream as it is."""
        return Dictionary(
            id=self.wanted.id,
            site=self.wanted.site,
            format="tiller",
            encoder=self.encoder.cpu().clone(),
            encoder_bias=self.encoder_bias.cpu() * self.scale,
            decoder=self.decoder.cpu().clone(),
            decoder_bias=self.decoder_bias.cpu() * self.scale,
            activation=self._activation(),
            subtracts_decoder_bias=self.wanted.kind != "jumprelu",
            model=model,
        )

    def _activation(self) -> Activation:
        match self.wanted.kind:
            case "jumprelu":
                return JumpReLU(self.log_threshold.detach().exp().cpu() * self.scale)
            case "topk":
                return TopK(self.wanted.l0)
            case "batchtopk":
                same = torch.full((self.wanted.features,), self.mean_threshold)
                return JumpReLU(same * self.scale)


class _Jump(torch.autograd.Function):
    """relu(z) where it is above theta; near theta a gradient reaches theta."""

    @staticmethod
    def forward(ctx, z, theta, bandwidth):  # noqa: ANN001, ANN205 - torch's own signature
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return z * (z > theta)

    @staticmethod
    def backward(ctx, *grads):  # noqa: ANN001, ANN002, ANN205
        z, theta = ctx.saved_tensors
        grad = grads[0]
        near = ((z - theta).abs() < ctx.bandwidth / 2) * grad
        return (z > theta) * grad, -(theta / ctx.bandwidth) * near.sum(0), None


class _Step(torch.autograd.Function):
    """1 where z is above theta, else 0; near theta a gradient reaches theta, none reaches z."""

    @staticmethod
    def forward(ctx, z, theta, bandwidth):  # noqa: ANN001, ANN205
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx, *grads):  # noqa: ANN001, ANN002, ANN205
        z, theta = ctx.saved_tensors
        near = ((z - theta).abs() < ctx.bandwidth / 2) * grads[0]
        return None, -near.sum(0) / ctx.bandwidth, None
