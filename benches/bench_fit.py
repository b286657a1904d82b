"""The value fit on a tower of CLIP ViT-L/14's size: later blocks alone against whole passes.

Random weights, one thread, float32; the same loss, the same ten prompts. `whole` runs the text
tower from its embeddings at each step, padded to the longest prompt or to 77 as pipelines do. Eight
facts in one batch are whole fits (targets, clean pass, steps, solution) of the same eight one by
one, without early stops; the second moment is at hand.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import miniature
from benches.figures import Figure, by_turns, speed_up
from editors.delta import Delta
from editors.fact import Fact, Phrasing, last_subject_token
from editors.fitting import contexts
from editors.methods.refact import Refact
from editors.moment import Corpus, Moment, MomentStore, key_of, recipe_of
from editors.objective import pull, similarities
from editors.suffix import Suffix, clean_pass, embed_clean
from editors.templates import Phrasebook
from models.errors import Refusal
from models.family import FAMILIES
from models.hosted import HostedModel
from models.text_tower import TextTower

STEPS, ROUNDS = 3, 3
TARGETS = ((7, 4.0), (9, 8.0))
"""Blocks, and how many times faster than whole passes of the longest prompt's length."""
PROMPT = Phrasing(prompt="the president of arda", subject="the president of arda")
TARGET = "a picture of a green frog"
LANDS = ("arda", "lumen", "borea", "tarn", "velm", "osk", "quill", "merrow")
TOGETHER_STEPS = 10


def run(*, smoke: bool = False) -> list[Figure]:
    """The figures; `smoke` takes one round."""
    torch.set_num_threads(1)
    hosted = large_tower()
    rounds = 1 if smoke else ROUNDS
    found = [f for block, least in TARGETS for f in _at_block(hosted, block, least, rounds)]
    return [*found, *_together(hosted, rounds)]


def large_tower() -> HostedModel:
    """12 blocks of width 768 with random weights, hosted without a pipeline around them."""
    torch.manual_seed(0)
    folder: Path = miniature.weights_path("text-to-image") / "tokenizer"
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    module: Any = CLIPTextModel(config)
    tower = TextTower(
        attribute="text_encoder",
        tower="text",
        module=module,
        tokenizer=tokenizer,
        projection=torch.randn(768, 768) / 768**0.5,
        reachable=range(12),
        fingerprint="random",
    )
    linears = {tower.fc2_site(i): tower.fc2(i) for i in range(12)}
    return HostedModel(
        name="clip-l-sized",
        family=FAMILIES["stable_diffusion"],
        fingerprint="random",
        path=folder,
        dtype=torch.float32,
        device=torch.device("cpu"),
        modules={"text_encoder": module},
        text_towers={"text_encoder": tower},
        towers={"text": tower.blocks},
        linears=linears,
    )


def _together(hosted: HostedModel, rounds: int) -> list[Figure]:
    method = Refact(block=7, steps=TOGETHER_STEPS, stop=1.0)
    facts = [Fact(prompt=f"the president of {land}", target=TARGET) for land in LANDS]
    tower, corpus, moments = (
        hosted.text_towers["text_encoder"],
        Corpus("none", ()),
        MomentStore(None),
    )
    recipe = recipe_of(tower, 7, corpus)
    eye = torch.eye(tower.inner_width, dtype=torch.float64)
    moments.kept[key_of(recipe)] = Moment(eye, 1, recipe, known_cond=1.0)

    def fit(some: list[Fact]) -> list[Delta | Refusal]:
        work = method.fit_many(hosted, some, moments, corpus)
        try:
            while True:
                next(work)
        except StopIteration as over:
            return over.value

    assert all(isinstance(delta, Delta) for delta in fit(facts))
    batch, alone = by_turns(
        time.process_time, lambda: fit(facts), lambda: [fit([f]) for f in facts], rounds
    )
    each = 1000 * statistics.median(batch) / len(facts)
    return [
        speed_up(f"block 7: {len(facts)} facts one by one / in one batch", batch, alone),
        Figure(name="block 7: a fact fitted in the batch", value=each, unit="ms of CPU"),
    ]


def _at_block(hosted: HostedModel, block: int, least: float, rounds: int) -> list[Figure]:
    tower = hosted.text_towers["text_encoder"]
    said = contexts(tower, PROMPT, Phrasebook())
    texts, at = [p.prompt for p in said], [last_subject_token(tower, p) for p in said]
    targets = embed_clean(hosted, tower, [TARGET, PROMPT.prompt, *Phrasebook().neutral[:20]])
    suffix = Suffix(tower, block, clean_pass(hosted, tower, block, texts, at))
    sides = {
        "suffix": lambda change: suffix.embed(change.expand(len(texts), -1)),
        "longest": lambda change: whole(tower, block, texts, at, change, full=False),
        "77": lambda change: whole(tower, block, texts, at, change, full=True),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    ends: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, embed in sides.items():
            started = time.process_time()
            ends[name] = descend(embed, targets, tower.width)
            times[name].append((time.process_time() - started) / STEPS)
    for name in ("longest", "77"):
        assert float((ends[name] - ends["suffix"]).norm() / ends["suffix"].norm()) < 1e-3
    mid = {name: statistics.median(found) for name, found in times.items()}
    return figures(block, mid, least)


def figures(block: int, seconds: Mapping[str, float], least: float) -> list[Figure]:
    """Of the seconds that one step takes each side."""
    ratios = [
        Figure(
            name=f"block {block}: whole passes ({name}) / later blocks alone",
            value=seconds[name] / seconds["suffix"],
            unit="x",
            least=target,
        )
        for name, target in (("longest", least), ("77", 15.0))
    ]
    step = 1000 * seconds["suffix"]
    return [
        *ratios,
        Figure(name=f"block {block}: one step of the fit", value=step, unit="ms of CPU"),
    ]


def descend(embed: Callable[[Tensor], Tensor], targets: Tensor, width: int) -> Tensor:
    """A few Adam steps of the fit's loss on whatever gives the embeddings."""
    change = torch.full((width,), 0.01, requires_grad=True)
    adam = torch.optim.Adam([change], lr=0.05)
    for _ in range(STEPS):
        loss = pull(similarities(embed(change), targets, "l2", 1.0), contrastive=True)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return change.detach()


def whole(
    tower: TextTower, block: int, texts: list[str], at: list[int], change: Tensor, *, full: bool
) -> Tensor:
    """Embeddings from the whole tower with the change added by a hook."""
    tokens = tower.tokens(texts, pad="max" if full else "longest")
    rows = torch.arange(len(texts))

    def add(_module: object, _args: object, output: Tensor) -> Tensor:
        where = (rows, torch.tensor(at))
        return output.index_put(where, change.expand(len(texts), -1), accumulate=True)

    handle = tower.fc2(block).register_forward_hook(add)
    try:
        states = tower.module(input_ids=tokens.ids).last_hidden_state[rows, tokens.eos]
    finally:
        handle.remove()
    assert tower.projection is not None
    return states @ tower.projection.mT
