"""A Llama of 30 million random weights, and ways to have texts written: ours and the library's."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from engines.slots.engine import SlotEngine
from engines.slots.request import GREEDY, LAST, Event, Finished, Generation
from models.patch import Patch, Shift
from models.toys_decoders import toy_llama_tokenizer

PROMPTS, ANSWERS = (20, 72), (8, 57)
"""Fewest tokens, and one more than most."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a Llama."""

    width: int = 512
    inner: int = 1376
    layers: int = 8
    heads: int = 8
    vocabulary: int = 8192


THIRTY = Size()
SMALL = Size(width=64, inner=128, layers=2, heads=2, vocabulary=512)
"""To see that it runs."""


def save_llama(size: Size, folder: Path) -> Path:
    """Draw the weights and save them with a tokenizer."""
    torch.manual_seed(0)
    stated: dict[str, Any] = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": 512,
    }
    LlamaForCausalLM(LlamaConfig(**stated)).save_pretrained(folder)
    toy_llama_tokenizer().save_pretrained(folder)
    return folder


def requests(count: int, vocabulary: int, seed: int = 0) -> list[Generation]:
    """Prompts and answers of mixed lengths; nobody ends early."""
    drawn = torch.Generator().manual_seed(seed)

    def numbers(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=drawn).tolist()

    lengths = zip(numbers(*PROMPTS, count), numbers(*ANSWERS, count), strict=True)
    return [
        Generation(
            id=str(i),
            ids=tuple(numbers(3, min(440, vocabulary), prompt)),
            max_tokens=answer,
            ignore_eos=True,
            sampling=GREEDY,
        )
        for i, (prompt, answer) in enumerate(lengths)
    ]


def written(engine: SlotEngine, rows: Sequence[Generation]) -> list[tuple[int, ...]]:
    """What the engine writes for all of them at once."""
    found: dict[str, tuple[int, ...]] = {}
    over, left = threading.Event(), len(rows)

    def tell(row: Generation, event: Event) -> None:
        nonlocal left
        if isinstance(event, LAST):
            assert isinstance(event, Finished), event
            found[row.id] = event.ids
            left -= 1
            if not left:
                over.set()

    for row in rows:
        engine.submit(row, lambda event, row=row: tell(row, event))
    assert over.wait(600)
    return [found[row.id] for row in rows]


class Stock:
    """The library by itself: a model without our hooks."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    @torch.inference_mode()
    def one_by_one(self, rows: Sequence[Generation]) -> list[tuple[int, ...]]:
        """`generate`, one request after another."""
        nobody = int(self.model.config.vocab_size)
        found = []
        for row in rows:
            ids = torch.tensor([row.ids])
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=row.max_tokens,
                do_sample=False,
                eos_token_id=nobody,
                pad_token_id=0,
            )
            found.append(tuple(out[0, len(row.ids) :].tolist()))
        return found

    @contextmanager
    def batching(self) -> Iterator["Batching"]:
        """Continuous batching where it is exact: no shared blocks, no graphs, bounded memory."""
        settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        bounds = ContinuousBatchingConfig(
            allow_block_sharing=False,
            use_cuda_graph=False,
            use_async_batching=False,
            auto_switch_to_flash=False,
            num_blocks=64,
            max_batch_tokens=512,
        )
        manager = self.model.init_continuous_batching(
            generation_config=settings, continuous_batching_config=bounds
        )
        manager.start()
        try:
            yield Batching(manager)
        finally:
            manager.stop(block=True)


class Batching:
    """A running manager of the library's."""

    def __init__(self, manager: Any) -> None:
        self.manager = manager

    def written(self, rows: Sequence[Generation]) -> list[tuple[int, ...]]:
        """What it writes for all of them at once."""
        places = {
            self.manager.add_request(list(row.ids), max_new_tokens=row.max_tokens): row.id
            for row in rows
        }
        found: dict[str, tuple[int, ...]] = {}
        while len(found) < len(rows):
            told = self.manager.get_result(timeout=1)
            assert told is not None or self.manager.is_running()
            if told is not None and told.is_finished():
                found[places[told.request_id]] = tuple(told.generated_tokens)
        return [found[row.id] for row in rows]


def shift_of(number: int, width: int, site: str) -> Patch:
    """A steering vector that no other number has; small enough to change speed alone."""
    vector = torch.randn(width, generator=torch.Generator().manual_seed(number))
    return Patch((Shift(site=site, vector=0.01 * vector, positions="last_and_generated"),))
