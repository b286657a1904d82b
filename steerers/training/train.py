"""Train SAEs of one or several streams while a hosted decoder reads texts.

One forward serves all of them. Nothing of the model changes. Memory: the buffer (see `Recipe`), and
per SAE its tensors four times (weights, gradients, Adam's two moments).
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from models.hosted import HostedModel
from models.progress import Progress
from steerers.dictionary import Dictionary
from steerers.errors import TooFewTexts
from steerers.lens import language_of
from steerers.training.buffer import Buffer, endless, streams_of
from steerers.training.learner import Learner
from steerers.training.quality import Quality, measure
from steerers.training.recipe import Recipe, Wanted

_TOLD_EVERY = 10
STAGE = "sae"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished SAE; it declares the L0 and explained variance that were measured."""

    dictionary: Dictionary
    quality: Quality


def train(
    hosted: HostedModel,
    wanted: Sequence[Wanted],
    texts: Callable[[], Iterable[str]],
    recipe: Recipe | None = None,
    dtype: torch.dtype = torch.float32,
) -> Generator[Progress, None, list[Trained]]:
    """Train all that is wanted, and measure it.

    Args:
        hosted: A model that speaks.
        wanted: At least one; ids differ.
        texts: Begins to tell the texts, as often as it is called; they are never held together.
        recipe: How; None takes the defaults.
        dtype: In which it will be stored: it is measured as rounded.

    Yields:
        Tokens done, and by id the last batch's `fvu`, `l0` and `dead`.

    Raises:
        TooFewTexts: Fewer than are held out, or not one batch behind them.
        UnknownSite, MethodNotApplicable: The model has no such stream, or does not speak.
    """
    recipe = recipe or Recipe()
    language_of(hosted)
    held_out = list(islice(texts(), recipe.held_out))
    learners = yield from _learned(hosted, wanted, texts, recipe)
    done: list[Trained] = []
    for learner in learners:
        dictionary = rounded(learner.dictionary(hosted.name), dtype)
        quality = measure(hosted, dictionary, held_out, recipe.text_tokens)
        declared = {"l0": quality.fit.l0, "explained_variance": quality.explained}
        done.append(Trained(dictionary=replace(dictionary, declared=declared), quality=quality))
        yield Progress(stage="measuring", done=len(done), total=len(wanted))
    return done


def rounded(dictionary: Dictionary, dtype: torch.dtype) -> Dictionary:
    """The SAE as it comes back from a file of that dtype; thresholds keep float32."""
    names = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    return replace(dictionary, **{n: getattr(dictionary, n).to(dtype).float() for n in names})


def _learned(
    hosted: HostedModel,
    wanted: Sequence[Wanted],
    texts: Callable[[], Iterable[str]],
    recipe: Recipe,
) -> Generator[Progress, None, list[Learner]]:
    sites = list(dict.fromkeys(w.site for w in wanted))
    told = endless(texts, recipe.held_out)
    buffer = Buffer(streams_of(hosted, told, sites, recipe.text_tokens), recipe)
    learners: list[Learner] = []
    optimisers: list[torch.optim.Optimizer] = []
    for step, batch in enumerate(islice(buffer.batches(), recipe.steps)):
        if not learners:
            learners = [Learner(w, recipe, batch[w.site]) for w in wanted]
            optimisers = [_optimiser(learner, recipe) for learner in learners]
        said: dict[str, float] = {}
        for learner, optimiser in zip(learners, optimisers, strict=True):
            said |= _step(learner, optimiser, batch[learner.wanted.site], step)
        if step % _TOLD_EVERY == 0 or step + 1 == recipe.steps:
            seen = (step + 1) * recipe.batch
            yield Progress(stage=STAGE, done=seen, total=recipe.steps * recipe.batch, values=said)
    if not learners:
        raise TooFewTexts(
            f"Behind {recipe.held_out} texts held out there are not {recipe.batch} tokens."
        )
    return learners


def _optimiser(learner: Learner, recipe: Recipe) -> torch.optim.Optimizer:
    groups = [{"params": learner.weights, "peak": recipe.rate}]
    if learner.log_threshold.requires_grad:
        groups.append({"params": [learner.log_threshold], "peak": recipe.threshold_rate})
    return torch.optim.Adam(groups, recipe.rate, betas=(0.9, 0.99), fused=True)


def _step(
    learner: Learner, optimiser: torch.optim.Optimizer, tokens: Tensor, step: int
) -> dict[str, float]:
    recipe = learner.recipe
    passed = (step + 1) / recipe.steps
    warm = min(1.0, passed / recipe.warmup)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * min(warm, (1 - step / recipe.steps) / recipe.decay, 1.0)
    found = learner.losses(tokens, warm)
    optimiser.zero_grad(set_to_none=True)
    found.total.backward()
    learner.before_step()
    torch.nn.utils.clip_grad_norm_(learner.weights, 1.0)
    optimiser.step()
    learner.after_step(found.active, len(tokens))
    dead = float((learner.quiet > recipe.dead_after).sum())
    name = learner.wanted.id
    return {f"{name}.fvu": found.fvu, f"{name}.l0": found.l0, f"{name}.dead": dead}
