"""An SAE in canonical form: encode, decode, one feature's vectors, how well it fits.

Encode: u = n(x) - beta * b_dec, z = u W_enc + b_enc, a = act(z). Decode: n^-1(a W_dec + b_dec). The
input transform n comes before the subtraction. Decoder rows are as stored, not normalised. All in
float32. Covered: one site, read and written alike. Not covered: transcoders; they are refused.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import UnknownSite
from models.hosted import HostedModel
from models.site import Site
from steerers.activation import Activation, Gated, JumpReLU, TopK, contents, moved, prepared
from steerers.errors import BadDictionary, UnknownFeature, WrongDictionary

InputNorm = Literal["none", "layer_norm", "constant_norm_rescale"]
"""What is done to a token before the encoder and undone behind the decoder.

`layer_norm` subtracts the mean and divides by the unbiased deviation + 1e-5 (decoding multiplies by
the deviation alone, as SAELens and OpenAI do);
`constant_norm_rescale` gives the token the norm sqrt(d). Scalar factors are not here: readers fold
them into the tensors.
"""

_TENSORS = ("encoder", "encoder_bias", "decoder", "decoder_bias")
_EPSILON = 1e-5
_NEEDS_ALL = "TopK needs every column of the encoder to know whether one feature is active."
_NORMED = "its input norm depends on the token, so no constant vector is right."


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature, as `models.patch.Clamp` and `Shift` want it.

    Its activation is z where z > threshold, else 0; z = x . encoder + bias.

    Attributes:
        encoder: (d), the column of W_enc; for a gated SAE times exp(r_mag).
        bias: With b_dec folded in where the SAE subtracts it.
        threshold: Never negative.
        decoder: (d), the row of W_dec as stored.
        unclampable: Why its activation cannot be computed from these alone; None if it can.
    """

    index: int
    encoder: Float[Tensor, " d"]
    bias: float
    threshold: float
    decoder: Float[Tensor, " d"]
    unclampable: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well an SAE reproduces activations.

    Attributes:
        tokens: How many were measured.
        fvu: Fraction of variance unexplained: sum |x - x^|^2 / sum |x - mean|^2.
        l0: Mean number of active features per token.
        dead: Features that were active at none of the tokens.
    """

    tokens: int
    fvu: float
    l0: float
    dead: int

    def warnings(self, declared: Mapping[str, float]) -> tuple[str, ...]:
        """What does not agree with the declared `l0` and `explained_variance`.

        A wrong site is silent otherwise: L0 falls or FVU exceeds 1. An L0 off by half of the
        declared one and an explained variance lower by 0.1 are warned of.
        """
        said: list[str] = []
        l0, explained = declared.get("l0"), declared.get("explained_variance")
        if self.fvu > 1:
            said.append(f"FVU {self.fvu:.3g} is above 1: the site or the scale is wrong.")
        if l0 and not 0.5 <= self.l0 / l0 <= 1.5:
            said.append(f"L0 is {self.l0:.3g}, declared {l0:.3g}.")
        if explained is not None and 1 - self.fvu < explained - 0.1:
            said.append(f"Explained variance is {1 - self.fvu:.3f}, declared {explained:.3f}.")
        return tuple(said)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dictionary:
    """One SAE; its tensors and conventions are its identity.

    Attributes:
        id: What requests call it.
        site: The canonical stream site that it reads and writes.
        format: The layout that it was read from.
        encoder: (d, features), W_enc.
        encoder_bias: (features), b_enc; 0 for a gated SAE.
        decoder: (features, d), W_dec, rows as stored.
        decoder_bias: (d), b_dec.
        subtracts_decoder_bias: beta: whether b_dec leaves the input first.
        model: The base model that the source declares, or None.
        declared: What the source declares of its quality: `l0`, `explained_variance`.

    Raises:
        BadDictionary: At construction: shapes that do not fit, numbers that are not finite.
        BadSite: The site is none.
    """

    id: str
    site: str
    format: str
    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    activation: Activation
    subtracts_decoder_bias: bool = False
    input_norm: InputNorm = "none"
    model: str | None = None
    declared: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if Site.parse(self.site).kind != "stream":
            raise BadDictionary(f"An SAE reads a stream; {self.site} is a linear layer.")
        if self.encoder.ndim != 2:
            raise BadDictionary(
                f"encoder has shape {tuple(self.encoder.shape)}, not (d, features)."
            )
        d, features = self.encoder.shape
        wanted = ((d, features), (features,), (features, d), (d,))
        for name, shape in zip(_TENSORS, wanted, strict=True):
            value: Tensor = getattr(self, name)
            if value.shape != shape:
                raise BadDictionary(f"{name} has shape {tuple(value.shape)}, not {shape}.")
            if not bool(torch.isfinite(value).all()):
                raise BadDictionary(f"{name} is not finite.")
            object.__setattr__(self, name, value.detach().float().contiguous())
        object.__setattr__(self, "activation", prepared(self.activation, features))
        if isinstance(self.activation, Gated) and bool(self.encoder_bias.any()):
            raise BadDictionary("A gated SAE has no encoder bias beside its gate and magnitude.")

    @property
    def width(self) -> int:
        """The width d of its site."""
        return self.encoder.shape[0]

    @property
    def features(self) -> int:
        """How many features it has."""
        return self.encoder.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        inner = sum(v.nbytes for _, v in contents(self.activation) if isinstance(v, Tensor))
        return inner + sum(getattr(self, name).nbytes for name in _TENSORS)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of tensors, site and conventions; the same from whatever layout it was read."""
        conventions = [self.site, self.activation.kind, self.subtracts_decoder_bias]
        found = hashlib.sha256(json.dumps([*conventions, self.input_norm]).encode())
        named = [(name, getattr(self, name)) for name in _TENSORS]
        for name, value in (*named, *contents(self.activation)):
            if isinstance(value, Tensor):
                found.update(f"{name}{tuple(value.shape)}".encode())
                found.update(value.cpu().contiguous().numpy().data)
            else:
                found.update(f"{name}={json.dumps(value)}".encode())
        return found.hexdigest()

    @property
    def unshiftable(self) -> str | None:
        """Why adding a constant vector does not move a code by a constant; None if it does."""
        return None if self.input_norm == "none" else f"{self.id}: {_NORMED}"

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch features"]:
        """Codes of tokens of the site, in float32."""
        return self.activation(self.pre_activations(x))

    def pre_activations(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch features"]:
        """What the activation function reads."""
        mean, scale = self._norm(x.float())
        u = (x.float() - mean) / (scale + _EPSILON if self.input_norm == "layer_norm" else scale)
        if self.subtracts_decoder_bias:
            u = u - self.decoder_bias
        return u @ self.encoder + self.encoder_bias

    def decode(
        self,
        codes: Float[Tensor, "*batch features"],
        of: Float[Tensor, "*batch d"] | None = None,
    ) -> Float[Tensor, "*batch d"]:
        """Tokens from codes, in float32.

        Args:
            codes: What `encode` gave, perhaps changed.
            of: The encoded tokens, whose norm is restored; needed unless `input_norm` is none.
        """
        inner = codes.float() @ self.decoder + self.decoder_bias
        if self.input_norm == "none":
            return inner
        if of is None:
            raise BadDictionary(f"{self.id} cannot decode without the token: {_NORMED}")
        mean, scale = self._norm(of.float())
        return inner * scale + mean

    def output_scale(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 1"]:
        """By what a decoder row is multiplied at these tokens: 1 unless there is an input norm."""
        return self._norm(x.float())[1].expand(*x.shape[:-1], 1)

    def a_max(self, x: Float[Tensor, " d"]) -> float:
        """A: the largest code over all features at one token, after thresholding."""
        return float(self.encode(x).max())

    def feature(self, index: int) -> Feature:
        """One feature's vectors and numbers; UnknownFeature outside 0..features - 1."""
        if not 0 <= index < self.features:
            raise UnknownFeature(self.id, index, self.features)
        encoder, bias = self.encoder[:, index].double(), self.encoder_bias[index].double()
        if self.subtracts_decoder_bias:
            bias = bias - self.decoder_bias.double() @ encoder
        threshold, act = torch.zeros((), dtype=torch.float64), self.activation
        if isinstance(act, JumpReLU):
            threshold = act.threshold[index].double()
        if isinstance(act, Gated):
            # e + gate > 0 says the same of the magnitude: z > magnitude_bias - exp(r) * gate.
            r = act.r_mag[index].double().exp()
            encoder, bias = encoder * r, bias * r + act.magnitude_bias[index]
            threshold = act.magnitude_bias[index] - r * act.gate_bias[index]
        return Feature(
            index=index,
            encoder=encoder.float(),
            bias=float(bias),
            threshold=max(0.0, float(threshold)),
            decoder=self.decoder[index].clone(),
            unclampable=_NEEDS_ALL if isinstance(act, TopK) else self.unshiftable,
        )

    def check(self, hosted: HostedModel) -> None:
        """Whether a hosted model has its site, in its width.

        Raises:
            UnknownSite: The model has no such block.
            WrongDictionary: The stream there has another width.
        """
        site = Site.parse(self.site)
        if site.tower not in hosted.towers or (site.block or 0) >= len(hosted.towers[site.tower]):
            raise UnknownSite(self.site, hosted.name)
        width = hosted.family.stream_width(hosted, site.tower)
        if width != self.width:
            raise WrongDictionary(self.id, f"it has width {self.width}, {self.site} has {width}.")

    def fit(self, activations: Iterable[Float[Tensor, "_ d"]]) -> Fit:
        """How well it reproduces these activations of its site, batch by batch.

        Raises:
            BadDictionary: There are no activations, or they do not vary.
        """
        tokens, unexplained, active = 0, 0.0, 0
        total = torch.zeros(self.width, dtype=torch.float64)
        squares = torch.zeros((), dtype=torch.float64)
        fired = torch.zeros(self.features, dtype=torch.bool)
        for x in activations:
            codes = self.encode(x)
            unexplained += float((x.double() - self.decode(codes, x).double()).square().sum())
            active += int((codes > 0).sum())
            fired |= (codes > 0).any(0).cpu()
            total += x.double().sum(0).cpu()
            squares += x.double().square().sum().cpu()
            tokens += len(x)
        variance = float(squares - total.square().sum() / max(tokens, 1))
        if variance <= 0:
            raise BadDictionary(f"The fit of {self.id} needs activations that vary.")
        dead = self.features - int(fired.sum())
        return Fit(tokens=tokens, fvu=unexplained / variance, l0=active / tokens, dead=dead)

    def to(self, device: torch.device) -> "Dictionary":
        """The same on a device."""
        there: dict[str, Any] = {name: getattr(self, name).to(device) for name in _TENSORS}
        return replace(self, activation=moved(self.activation, device), **there)

    def _norm(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A token's mean and scale, which decoding restores: (..., 1) each, or one for all."""
        if self.input_norm == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        zero = x.new_zeros(1)
        if self.input_norm == "constant_norm_rescale":
            return zero, x.norm(dim=-1, keepdim=True).clamp_min(1e-30) / self.width**0.5
        return zero, x.new_ones(1)
