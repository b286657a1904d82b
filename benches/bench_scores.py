"""Output scores of SAE features: many at once against one after the other.

A random Gemma 2 of the 2B shape in bfloat16 (its weights repeat a million numbers) and a random
JumpReLU SAE. Plain is the paper's procedure in the same precision, one feature at a time: lens of
the row, then the whole prompt with a hook that encodes, raises the code, decodes and adds the
error, logits at every position, a sorted vocabulary. Ours reads the prompt once, then runs the last
position through the layers above, 256 features together. Behind each layer it is measured with the
lens computed by both, and with the lens known to ours, as a service knows it that keeps the lens of
a dictionary for search; what plain gains where it is told the tokens as well stands below. Seconds
are per feature; on a CPU with one thread they are the process's own.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.initialization import no_init_weights

from benches.figures import Figure, by_turns
from benches.memory import forget_peak, peak_of_process, size_of_process
from models.decoder import TOWER, find_decoder, linears_of
from models.family import FAMILIES
from models.hosted import HostedModel
from models.toys_lm import toy_gemma_tokenizer
from models.words import Words
from steerers.activation import JumpReLU
from steerers.dictionary import Dictionary
from steerers.lens import lens
from steerers.output_score import Scorer
from steerers.prompted import prompted
from steerers.score import REFERENCE

_NOISE = 1_048_573
"""A prime, so that no two rows of a matrix are alike."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Gemma 2, its SAE, and how much of it is measured.

    Attributes:
        stated: What its configuration says beside the defaults, which are those of the 2B model.
        features: Of the SAE.
        batch: Features that are scored together.
        one_by_one: Features that plain scores in a round.
        layers: Behind which layers is measured; the target is asked for at those of `late`.
        rounds: At each.
    """

    stated: dict[str, Any]
    features: int
    batch: int
    one_by_one: int
    layers: tuple[int, ...]
    late: tuple[int, ...]
    rounds: int


GEMMA_2_2B = Shape(
    stated={},
    features=16384,
    batch=256,
    one_by_one=2,
    layers=(0, 12, 20, 25),
    late=(20, 25),
    rounds=2,
)
SMALL = Shape(
    stated={
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
    },
    features=512,
    batch=64,
    one_by_one=4,
    layers=(1, 3),
    late=(),
    rounds=1,
)


def run(device: str = "cpu", *, smoke: bool = False) -> list[Figure]:
    """The figures.

    Args:
        device: Where it runs.
        smoke: A small shape: does it run?
    """
    torch.set_num_threads(1)
    shape = SMALL if smoke else GEMMA_2_2B
    clock = time.process_time if device == "cpu" else _synchronised
    hosted = random_gemma(shape, device)
    figures: list[Figure] = []
    for layer in shape.layers:
        figures += at_layer(hosted, shape, layer, clock)
    if device == "cpu":
        figures.append(memory(hosted, shape))
    return figures


def at_layer(
    hosted: HostedModel, shape: Shape, layer: int, clock: Callable[[], float]
) -> list[Figure]:
    """Speed of both behind one layer, and how far their scores are apart."""
    dictionary = random_dictionary(hosted, shape, layer)
    ids = hosted.family.tokenize(hosted, REFERENCE.prompt)  # pyright: ignore[reportAttributeAccessIssue]
    read = prompted(hosted, ids, [dictionary.site])
    scorer = Scorer(hosted=hosted, dictionary=dictionary, read=read)
    plain = Plain(hosted, dictionary, ids)
    turns = count()
    some = scorer.score(range(shape.one_by_one))
    off = max(abs((s.output_score or 0.0) - plain.score(s.feature)) for s in some)

    looked = lens(hosted, dictionary, range(shape.rounds * shape.batch), REFERENCE.tokens).ids

    def ours(known: bool) -> None:
        start = next(turns) % shape.rounds * shape.batch
        end = start + shape.batch
        scorer.score(range(start, end), looked[start:end] if known else None)

    def theirs(known: bool) -> None:
        for feature in range(shape.one_by_one):
            plain.score(feature, looked[feature] if known else None)

    fast, slow = by_turns(clock, partial(ours, False), partial(theirs, False), shape.rounds)
    told, slow_told = by_turns(clock, partial(ours, True), partial(theirs, True), shape.rounds)
    each, each_told = (statistics.median(found) / shape.batch for found in (fast, told))
    one, one_told = (statistics.median(found) / shape.one_by_one for found in (slow, slow_told))
    least = 100 if layer in shape.late else None
    kind = str(hosted.dtype).removeprefix("torch.")
    at = f"behind layer {layer} of {len(hosted.towers[TOWER])}, {kind}"
    work, bare = (flop(hosted, layer, lens=told) / 1e9 for told in (True, False))
    return [
        Figure(
            name=f"features per second, {shape.batch} at once / one by one, {at}",
            value=one / each,
            unit="x",
            least=least,
        ),
        Figure(
            name=f"features per second, lens known, {shape.batch} at once / one by one, {at}",
            value=one / each_told,
            unit="x",
            least=least,
        ),
        Figure(name=f"the same, lens known to both, {at}", value=one_told / each_told, unit="x"),
        Figure(name=f"features per second, at once, {at}", value=1 / each, unit="/s"),
        Figure(name=f"features per second, one by one, {at}", value=1 / one, unit="/s"),
        Figure(
            name=f"cost of a feature at once ({work:.2f} GFLOP with its lens), {at}",
            value=1000 * each,
            unit="ms",
        ),
        Figure(
            name=f"cost of a feature at once ({bare:.2f} GFLOP, lens known), {at}",
            value=1000 * each_told,
            unit="ms",
        ),
        Figure(name=f"largest difference of a score, {at}", value=off),
    ]


def memory(hosted: HostedModel, shape: Shape) -> Figure:
    """What scoring a batch needs beyond model and SAE; F x V logits would be 16 GiB here."""
    dictionary = random_dictionary(hosted, shape, shape.layers[-1])
    scorer = Scorer(hosted=hosted, dictionary=dictionary)
    scorer.score(range(2))
    forget_peak()
    before = size_of_process()
    scorer.score(range(shape.batch))
    grown = (peak_of_process() - before) / 2**20
    name = f"peak memory of scoring {shape.batch} features, beyond model and SAE"
    return Figure(name=name, value=grown, unit="MiB", most=1024)


def flop(hosted: HostedModel, layer: int, *, lens: bool) -> float:
    """Of one feature: the layers above for one token, and the vocabulary, with its lens twice."""
    above = hosted.towers[TOWER][layer + 1 :]
    weights = sum(p.numel() for block in above for p in block.parameters() if p.ndim == 2)
    head: Any = find_decoder(hosted.modules[TOWER]).head
    return 2.0 * weights + (4.0 if lens else 2.0) * head.weight.numel()


class Plain:
    """One feature at a time, as the paper's code does it."""

    def __init__(self, hosted: HostedModel, dictionary: Dictionary, ids: list[int]) -> None:
        self.model, self.parts = hosted.modules[TOWER], find_decoder(hosted.modules[TOWER])
        self.dictionary = dictionary
        self.layer = self.parts.layers[int(dictionary.site.rpartition(".")[2])]
        self.ids = torch.tensor([ids], device=hosted.device)
        self.dtype = hosted.dtype

    @torch.inference_mode()
    def score(self, feature: int, tokens: Tensor | None = None) -> float:
        """Its output score; by its lens tokens, if they are known."""
        tokens = self._lens(feature) if tokens is None else tokens
        hook = self.layer.register_forward_hook(self._steer(feature))
        try:
            logits = self.model(self.ids, use_cache=False).logits.float()
        finally:
            hook.remove()
        probabilities = logits.softmax(-1)[0, -1]
        ranks = torch.empty_like(tokens.new_empty(len(probabilities)))
        order = probabilities.argsort(descending=True)
        ranks[order] = torch.arange(len(order), device=order.device)
        share = 1 - float(ranks[tokens].min()) / len(order)
        return share * float(probabilities[tokens].max())

    def _lens(self, feature: int) -> Tensor:
        row = self.dictionary.decoder[feature].to(self.dtype)
        logits = self.parts.head(self.parts.norm(row)).float()
        return logits.argsort(descending=True)[: REFERENCE.tokens]

    def _steer(self, feature: int) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            x = output[0].float()
            codes = self.dictionary.encode(x)
            error = x.double() - self.dictionary.decode(codes).double()
            codes[-1, feature] += REFERENCE.factor * codes[-1].max()
            steered = (self.dictionary.decode(codes).double() + error).to(output.dtype)
            changed = output.clone()
            changed[0, -1] = steered[-1]
            return changed

        return hook


def random_gemma(shape: Shape, device: str) -> HostedModel:
    """Hosted without a folder: 5 GB are neither written nor read."""
    tokenizer = toy_gemma_tokenizer(f" {REFERENCE.prompt}")
    config = Gemma2Config(**shape.stated)
    config._attn_implementation = "eager"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with no_init_weights():
            model = Gemma2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    fill(model)
    model.to(device)  # pyright: ignore[reportArgumentType]
    decoder = find_decoder(model)
    return HostedModel(
        name="bench",
        family=FAMILIES["gemma2"],
        fingerprint="random",
        path=Path("bench"),
        dtype=torch.bfloat16,
        device=torch.device(device),
        modules={TOWER: model},
        parts={"decoder": decoder, "tokenizer": Words(tokenizer)},
        towers={TOWER: decoder.layers},
        linears=linears_of(decoder),
    )


def fill(model: nn.Module) -> None:
    """Numbers of the size that training leaves, at the speed of memory."""
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0))
    for weight in model.parameters():
        flat = weight.data.view(-1)
        if weight.ndim < 2:  # Gemma's gains are 1 + w
            flat.zero_()
            continue
        some = (noise * weight.shape[-1] ** -0.5).to(weight.dtype)
        for start in range(0, len(flat), _NOISE):
            flat[start : start + _NOISE] = some[: len(flat) - start]


def random_dictionary(hosted: HostedModel, shape: Shape, layer: int) -> Dictionary:
    """A JumpReLU SAE with rows of length 1, some of whose features are active."""
    generator = torch.Generator().manual_seed(layer)
    width = hosted.family.stream_width(hosted, TOWER)
    encoder = torch.randn(width, shape.features, generator=generator) / width**0.5
    decoder = encoder.mT / encoder.norm(dim=0)[:, None]
    made = Dictionary(
        id="bench",
        site=f"{TOWER}.block.{layer}",
        format="random",
        encoder=encoder,
        encoder_bias=torch.zeros(shape.features),
        decoder=decoder,
        decoder_bias=torch.zeros(width),
        activation=JumpReLU(threshold=torch.full((shape.features,), 2.0)),
    )
    return made.to(hosted.device)


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()
