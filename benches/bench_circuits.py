"""Edge scores of a circuit: EAP-IG-inputs, five steps, against the same formula the plain way.

A random GPT-2 of the small shape (12 layers, 12 heads, width 768; 2,048 words, since words cost
both sides the same) in float32, four pairs of 18 tokens. Plain: a copy of the stream for each of q,
k and v of each head, a difference tensor at the stream's width for all sources, a product at every
gradient; heads' matrices multiplied as TransformerLens does under the published code (broadcast,
then summed), weights with gradients, as there. A second plain way multiplies matrices and freezes
the weights: nearly all of its time is the model's own, so no target stands there. Seconds are the
process's own with one thread; memory is what the process needs beyond the model. Then the time for
the shape of Qwen2.5-0.5B, with its grouped keys, and for judging circuits: both selections at ten
sizes.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM
from transformers.initialization import no_init_weights

from benches.bench_scores import fill
from benches.figures import Figure
from benches.memory import forget_peak, peak_of_process, size_of_process
from benches.plain_circuits import Plain
from evaluation.behaviours.pairs import PairIds
from evaluation.circuits.anatomy import Anatomy, find_anatomy
from evaluation.circuits.attribution import Gradually, Scores, attribute
from evaluation.circuits.batches import Batch, in_batches
from evaluation.circuits.faithfulness import measure
from evaluation.circuits.points import Cost
from evaluation.circuits.running import know
from models.decoder import TOWER, find_decoder, linears_of
from models.family import FAMILIES
from models.hosted import HostedModel
from models.toys_decoders import TALK, toy_gpt2_tokenizer
from models.toys_lm import toy_qwen_tokenizer
from models.words import Words

STEPS, PAIRS, TOKENS, WORDS = 5, 4, 18, 2048
_TIMES, _MEMORY = 10.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What both models' configurations say."""

    gpt2: dict[str, Any]
    qwen: dict[str, Any]


QWEN_05B = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
WHOLE = Shapes(gpt2={}, qwen=QWEN_05B)
SMALL = Shapes(
    gpt2={"n_embd": 32, "n_layer": 2, "n_head": 4},
    qwen={
        **QWEN_05B,
        "hidden_size": 56,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
    },
)


def run(*, smoke: bool = False) -> list[Figure]:
    """Time and memory of both ways on GPT-2; time on Qwen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shapes = SMALL if smoke else WHOLE
    try:
        return [*_gpt2(shapes.gpt2, least=not smoke), *_qwen(shapes.qwen)]
    finally:
        torch.set_num_threads(threads)


def _gpt2(stated: dict[str, Any], *, least: bool) -> list[Figure]:
    config = GPT2Config(vocab_size=WORDS, **stated)
    anatomy = find_anatomy(hosted("gpt2", GPT2LMHeadModel, config, toy_gpt2_tokenizer()))
    [batch] = in_batches(pairs(), PAIRS * TOKENS, torch.device("cpu"))
    _ours(anatomy, batch)  # what is made once
    ours = _measured(lambda: _ours(anatomy, batch).edges)
    model, graph = anatomy.hosted.modules[TOWER], anatomy.graph
    theirs = _measured(lambda: Plain(model, graph, "published").scored(batch, STEPS))
    matrix = _measured(lambda: Plain(model, graph, "matrix").scored(batch, STEPS))
    off = (ours.scores - theirs.scores).abs().max() / theirs.scores.abs().max()
    return [
        Figure(name="CPU time, plain / ours", value=theirs.seconds / ours.seconds, unit="x",
               least=_TIMES if least else None),
        Figure(name="peak memory beyond the model, plain / ours", value=theirs.grown / ours.grown,
               unit="x", least=_MEMORY if least else None),
        Figure(name="largest difference of a score / largest score", value=float(off), most=1e-4),
        Figure(name="CPU time, plain with matrix products / ours",
               value=matrix.seconds / ours.seconds, unit="x"),
        Figure(name="peak memory, plain with matrix products / ours",
               value=matrix.grown / ours.grown, unit="x"),
        Figure(name="plain: CPU time", value=theirs.seconds, unit="s"),
        Figure(name="ours: CPU time", value=ours.seconds, unit="s"),
        Figure(name="plain: peak memory", value=theirs.grown / 2**20, unit="MiB"),
        Figure(name="ours: peak memory", value=ours.grown / 2**20, unit="MiB"),
        _judging(anatomy, ours.scores, batch),
    ]  # fmt: skip


def _judging(anatomy: Anatomy, edges: torch.Tensor, batch: Batch) -> Figure:
    cost, started = Cost(), time.process_time()
    known = [know(anatomy, batch, cost)]
    for _ in measure(anatomy, known, Scores(edges=edges), cost=cost):
        pass
    seconds = time.process_time() - started
    return Figure(name="ours: CPU time of judging, 20 circuits x 4 pairs", value=seconds, unit="s")


def _qwen(stated: dict[str, Any]) -> list[Figure]:
    config = Qwen2Config(vocab_size=WORDS, **stated)
    anatomy = find_anatomy(hosted("qwen2", Qwen2ForCausalLM, config, toy_qwen_tokenizer(TALK)))
    [batch] = in_batches(pairs(), PAIRS * TOKENS, torch.device("cpu"))
    found = _measured(lambda: _ours(anatomy, batch).edges)
    name = "ours, shape of Qwen2.5-0.5B"
    return [
        Figure(name=f"{name}: edges", value=anatomy.graph.edges),
        Figure(name=f"{name}: CPU time", value=found.seconds, unit="s"),
        Figure(name=f"{name}: peak memory", value=found.grown / 2**20, unit="MiB"),
    ]


@dataclass(frozen=True, eq=False)
class _Measured:
    scores: torch.Tensor
    seconds: float
    grown: float


def _measured(work: Any) -> _Measured:
    forget_peak()
    before, started = size_of_process(), time.process_time()
    scores = work()
    seconds = time.process_time() - started
    return _Measured(scores, seconds, max(peak_of_process() - before, 1))


def _ours(anatomy: Anatomy, batch: Batch) -> Scores:
    steps = attribute(anatomy, [batch], Gradually(steps=STEPS))
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def pairs() -> list[PairIds]:
    """Random prompts; two tokens differ in each pair."""
    draw, found = torch.Generator().manual_seed(0), []
    for _ in range(PAIRS):
        clean = torch.randint(WORDS, (TOKENS,), generator=draw).tolist()
        corrupted = list(clean)
        corrupted[4], corrupted[9] = torch.randint(WORDS, (2,), generator=draw).tolist()
        right, wrong = torch.randint(WORDS, (2,), generator=draw).tolist()
        found.append(
            PairIds(clean=tuple(clean), corrupted=tuple(corrupted), correct=right, incorrect=wrong)
        )
    return found


def hosted(kind: str, model: Any, config: Any, tokenizer: Any) -> HostedModel:
    """A random member of a family, without a folder."""
    config._attn_implementation = "sdpa"
    with no_init_weights():
        made = model(config)
    fill(made)
    for name, weight in made.named_parameters():
        if weight.ndim < 2 and name.endswith("weight"):  # the norms' gains
            weight.data.fill_(1.0)
    family: Any = FAMILIES[kind]
    family.prepare(made)
    decoder = find_decoder(made)
    return HostedModel(
        name="bench",
        family=family,
        fingerprint="random",
        path=Path("bench"),
        dtype=torch.float32,
        device=torch.device("cpu"),
        modules={TOWER: made},
        parts={"decoder": decoder, "tokenizer": Words(tokenizer)},
        towers={TOWER: decoder.layers},
        linears=linears_of(decoder),
    )
