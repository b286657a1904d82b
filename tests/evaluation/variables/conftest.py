"""Tiny decoders of the benchmark's four classes, random interchanges, a swap written plainly."""

from contextlib import ExitStack

import pytest
import torch

from evaluation.behaviours.swaps import SwapIds, prepare_swaps
from evaluation.variables.settings import Featurizing, VariableStudy
from evaluation.variables.study import study
from evaluation.variables.table import table
from evaluation.variables.training import Recipe
from miniature import weights_path
from models.family import FAMILIES
from models.loading import load
from service.vocabularies import miniature

KINDS = ("gpt2", "llama", "qwen2", "gemma2")


@pytest.fixture(scope="session")
def decoders(tmp_path_factory):
    """A function: a tiny hosted decoder by its family's kind, made once."""
    made = {}

    def hosted(kind):
        if kind not in made:
            family = FAMILIES[kind]
            made[kind] = load(f"tiny-{kind}", family.tiny(tmp_path_factory.mktemp(kind) / kind))
        return made[kind]

    yield hosted
    for one in made.values():
        one.close()


@pytest.fixture(params=KINDS)
def decoder(request, decoders):
    return decoders(request.param)


@pytest.fixture
def llama(decoders):
    return decoders("llama")


def drawn(hosted, lengths=((7, 9), (9, 7), (8, 8)), answer=1, seed=0):
    """Random interchanges of these (base, counterfactual) lengths; `mid` and `last_token`."""
    generator = torch.Generator().manual_seed(seed)
    most = hosted.family.vocab_size(hosted)

    def ids(n):
        return tuple(torch.randint(5, most, (n,), generator=generator).tolist())

    found = []
    for row, (base, other) in enumerate(lengths):
        expected = ids(answer)
        found.append(
            SwapIds(
                base=ids(base),
                counterfactual=ids(other),
                base_answer=ids(1),
                counterfactual_answer=ids(1),
                base_answer_text="b",
                counterfactual_answer_text="c",
                expected={"x": expected},
                expected_text={"x": hosted.family.detokenize(hosted, expected)},
                positions={"mid": (2 + row, 4), "last_token": (base - 1, other - 1)},
                of_set=("first", "second")[row % 2],
                distractor=ids(1),
            )
        )
    return found


def tabled(swaps, positions=("mid", "last_token"), **stated):
    return table(swaps, "x", positions, **stated)


def module_of(hosted, unit):
    """The module whose output (stream) or input (head) holds the unit."""
    layer = hosted.family.decoder(hosted).layers[unit.layer]
    if unit.head is None:
        return layer
    return layer.attn.c_proj if hasattr(layer, "attn") else layer.self_attn.o_proj


def held_plainly(hosted, ids, unit, column):
    """What the unit holds in the library's own forward of one row; `column` may be a slice."""
    seen = []
    module = module_of(hosted, unit)
    with ExitStack() as undo, torch.no_grad():
        if unit.head is None:
            hook = module.register_forward_hook(lambda _m, _a, out: seen.append(out))
        else:
            hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        undo.callback(hook.remove)
        hosted.modules["lm"](torch.tensor([list(ids)]))
    values = seen[0][0, column]
    if unit.head is None:
        return values
    config = hosted.family.decoder(hosted).config
    wide = values.shape[-1] // config.num_attention_heads
    return values[..., unit.head * wide : (unit.head + 1) * wide]


def swapped_plainly(hosted, ids, changes):
    """The library's own logits (tokens, vocab) of one row.

    `changes` are (unit, column or slice, function of what stands there).
    """
    config = hosted.family.decoder(hosted).config

    def written(unit, column, change, whole):
        whole = whole.clone()
        own = slice(None)
        if unit.head is not None:
            wide = whole.shape[-1] // config.num_attention_heads
            own = slice(unit.head * wide, (unit.head + 1) * wide)
        whole[0, column, own] = change(whole[0, column, own])
        return whole

    with ExitStack() as undo:
        for unit, column, change in changes:
            module = module_of(hosted, unit)
            if unit.head is None:

                def after(_m, _a, out, unit=unit, column=column, change=change):
                    return written(unit, column, change, out)

                undo.callback(module.register_forward_hook(after).remove)
            else:

                def before(_m, args, unit=unit, column=column, change=change):
                    return (written(unit, column, change, args[0]), *args[1:])

                undo.callback(module.register_forward_pre_hook(before).remove)
        return hosted.modules["lm"](torch.tensor([list(ids)])).logits[0].float()


@pytest.fixture(scope="session")
def miniature_lm():
    hosted = load("miniature-lm", weights_path("language"))
    yield hosted
    hosted.close()


@pytest.fixture(scope="session")
def letters(miniature_lm):
    """Multiple choice of the miniature's: the right choice stands elsewhere in the other prompt."""
    told = miniature().behaviours()["mcqa"].swaps(60, seed=1, sets=["answerPosition"])
    return prepare_swaps(told, miniature_lm)


@pytest.fixture(scope="session")
def found(miniature_lm, letters):
    """The study of the letter on two layers with eight learned directions."""
    asked = VariableStudy(
        variable="answer",
        layers=(0, 5),
        positions=("last_token",),
        featurizer=Featurizing(kind="das", n=8),
        recipe=Recipe(epochs=3, batch=20),
    )
    return drained(study(miniature_lm, letters, asked))


def drained(work):
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
