"""What a swap does to answers: IIA per row, logit differences, and which rows count at all.

Greedy decoding. A row is kept only if the model is right on base and counterfactual: elsewhere
there is no behaviour to explain. The first new token comes from the shared forwards of `Trials`;
where answers are longer the rest is written by running the swap again with what was said behind the
base.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluation.behaviours.pairs import Dropped
from evaluation.behaviours.swaps import SwapIds
from evaluation.variables.clean import Rows, read
from evaluation.variables.errors import NothingKept
from evaluation.variables.objective import Checker, Differences, difference
from evaluation.variables.table import table
from evaluation.variables.trials import ROWS, Trial, Trials
from evaluation.variables.units import language
from models.hosted import HostedModel
from models.progress import Progress

_BATCH = 64


def accuracies(
    trials: Trials, wanted: Sequence[Trial], new_tokens: int, right: Checker
) -> Generator[Progress, None, Float[np.ndarray, "trials rows"]]:
    """1 where the expected text is in what is said under the swap, else 0; per trial and row."""
    swaps, variable = trials.table.swaps, trials.table.variable
    found = np.zeros((len(wanted), len(swaps)))
    for group, index, said in _said(trials, wanted, new_tokens):
        for i, texts in zip(group, said, strict=True):
            for row, text in zip(index.tolist(), texts, strict=True):
                found[i, row] = right(swaps[row].expected_text[variable], text)
        yield Progress(stage="scores", done=max(group) + 1, total=len(wanted))
    return found


@torch.no_grad()
def errors(
    trials: Trials, wanted: Sequence[Trial], objective: Differences
) -> Float[np.ndarray, "trials rows"]:
    """Squared errors of the logit difference under each trial."""
    found = np.zeros((len(wanted), len(trials.table)))
    for group, index, logits in _batches(trials, wanted):
        for i, one in zip(group, logits, strict=True):
            found[i, index.tolist()] = objective.errors(one, index).cpu().numpy()
    return found


@torch.no_grad()
def differences(trials: Trials, wanted: Trial) -> Float[np.ndarray, " rows"]:
    """The logit difference of every row under one trial."""
    found = np.zeros(len(trials.table))
    for _, index, logits in _batches(trials, [wanted]):
        some = [trials.table.swaps[i] for i in index.tolist()]
        found[index.tolist()] = difference(logits[0, :, 0], some).cpu().numpy()
    return found


@dataclass(frozen=True, kw_only=True)
class Competence:
    """Rows that the model answers rightly, and the others."""

    kept: tuple[SwapIds, ...]
    dropped: tuple[Dropped, ...]


def competent(
    hosted: HostedModel, swaps: Sequence[SwapIds], new_tokens: int, right: Checker
) -> Competence:
    """Keep the rows whose base and counterfactual are both answered rightly.

    Raises:
        NothingKept: No row is left.
    """
    kept, dropped = [], []
    bases = greedy(hosted, [swap.base for swap in swaps], new_tokens)
    others = greedy(hosted, [swap.counterfactual for swap in swaps], new_tokens)
    for row, swap in enumerate(swaps):
        if not right(swap.base_answer_text, bases[row]):
            told = f"the base is answered with {bases[row]!r}, not {swap.base_answer_text!r}"
            dropped.append(Dropped(row=row, reason=told))
        elif not right(swap.counterfactual_answer_text, others[row]):
            told = f"{others[row]!r}, not {swap.counterfactual_answer_text!r}"
            dropped.append(Dropped(row=row, reason=f"the counterfactual is answered with {told}"))
        else:
            kept.append(swap)
    if not kept:
        raise NothingKept("the model answers none of them rightly, base and counterfactual.")
    return Competence(kept=tuple(kept), dropped=tuple(dropped))


@torch.no_grad()
def greedy(hosted: HostedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[str]:
    """What the model says behind each prompt, unchanged."""
    distinct = sorted({tuple(prompt) for prompt in prompts}, key=lambda p: (len(p), p))
    said: dict[tuple[int, ...], str] = {}
    for start in range(0, len(distinct), ROWS):
        part = distinct[start : start + ROWS]
        told: list[list[int]] = [[] for _ in part]
        for _ in range(new_tokens):
            rows = Rows.of([(*p, *t) for p, t in zip(part, told, strict=True)], hosted.device)
            for row, token in enumerate(_last_logits(hosted, rows).argmax(-1).tolist()):
                told[row].append(token)
        said.update({p: spelled(hosted, p, t) for p, t in zip(part, told, strict=True)})
    return [said[tuple(prompt)] for prompt in prompts]


def spelled(hosted: HostedModel, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """What the ids spell behind the prompt: alone, some tokenizers drop their leading space."""
    family = language(hosted)
    before = family.detokenize(hosted, prompt)
    return family.detokenize(hosted, [*prompt, *ids])[len(before) :]


def _last_logits(hosted: HostedModel, rows: Rows) -> Float[Tensor, "rows vocab"]:
    family = language(hosted)
    clean = read(hosted, rows, [len(family.decoder(hosted).layers)])
    (ending,) = clean.entering.values()
    ends = ending[torch.arange(len(rows), device=ending.device), rows.lengths - 1]
    return family.soft_cap(hosted, family.unembed(hosted, ends))


def _batches(
    trials: Trials, wanted: Sequence[Trial]
) -> Generator[tuple[list[int], Int[Tensor, " some"], Tensor], None, None]:
    """(places of trials, rows, logits) of all trials on all rows."""
    order = torch.arange(len(trials.table))
    for group in trials.together(wanted, _BATCH):
        for index in trials.batches(order, _BATCH):
            with torch.no_grad():
                logits = trials.logits([wanted[i] for i in group], index)
            yield group, index, logits


def _said(
    trials: Trials, wanted: Sequence[Trial], new_tokens: int
) -> Generator[tuple[list[int], Int[Tensor, " some"], list[list[str]]], None, None]:
    """(places of trials, rows, what each trial says in each row)."""
    hosted, swaps = trials.hosted, trials.table.swaps
    for group, index, logits in _batches(trials, wanted):
        first = logits[:, :, 0].argmax(-1).tolist()
        rows = index.tolist()
        said = []
        for i, tokens in zip(group, first, strict=True):
            told = [[token] for token in tokens]
            for _ in range(new_tokens - 1):
                _continue(trials, wanted[i], rows, told)
            texts = (spelled(hosted, swaps[r].base, t) for r, t in zip(rows, told, strict=True))
            said.append(list(texts))
        yield group, index, said


@torch.no_grad()
def _continue(trials: Trials, trial: Trial, rows: Sequence[int], told: Sequence[list[int]]) -> None:
    """One more token of each row: the swap is made again, with what was said behind the base."""
    variable, device = trials.table.variable, trials.hosted.device
    longer = [
        replace(trials.table.swaps[r], expected={variable: (*t, 0)})
        for r, t in zip(rows, told, strict=True)
    ]
    here = table(longer, variable, (), device=device)
    logits = trials.further(trial, torch.tensor(rows, device=device), here)
    for own, token in zip(told, logits.argmax(-1).tolist(), strict=True):
        own.append(token)
