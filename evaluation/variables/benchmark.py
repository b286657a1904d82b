"""MIB's own settings of its causal-variable tasks, as its baselines have them.

A study that names its `benchmark` states only what it wants otherwise: whatever is left as a study
without a benchmark has it is filled in. The indirect object's task swaps fixed heads together and
scores the logit difference.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from evaluation.variables.settings import Benchmark, VariableStudy
from evaluation.variables.training import Recipe
from evaluation.variables.units import ALL, Unit, width
from models.hosted import HostedModel

IOI_UNITS = tuple(
    Unit(layer=layer, head=head, position=ALL) for layer, head in ((7, 3), (7, 9), (8, 6), (8, 10))
)
"""Heads of GPT-2 small that the indirect object's task swaps jointly."""
Study = TypeVar("Study", bound=VariableStudy)
_EPOCHS_AND_BATCH: Mapping[Benchmark, tuple[int, int]] = {
    "4_answer_MCQA": (8, 64),
    "ARC_easy": (2, 48),
    "arithmetic": (1, 256),
    "ravel_task": (1, 128),
    "ioi_task": (2, 256),
}


def benchmark_recipe(
    task: Benchmark, variable: str, model_class: str, width: int
) -> tuple[Recipe, int]:
    """The benchmark's own recipe and n, by its names of task, variable and class.

    Args:
        task: A key of the submission's folders, `4_answer_MCQA`, ...
        variable: Of the task.
        model_class: `GPT2LMHeadModel`, `LlamaForCausalLM`, ...
        width: Of the unit.
    """
    epochs, batch = _EPOCHS_AND_BATCH[task]
    llama = model_class == "LlamaForCausalLM"
    if task == "ioi_task":
        size = 1024 if model_class == "GPT2LMHeadModel" else batch
        return Recipe(epochs=epochs, batch=size, rate=1.0), min(32, width)
    if task == "ravel_task":
        return Recipe(epochs=epochs, batch=48 if llama else batch), min(
            512 if llama else 288, width
        )
    return Recipe(epochs=epochs, batch=batch), width // 2 if variable == "answer" else min(
        16, width
    )


def placed(asked: Study) -> Study:
    """The study with what its benchmark says of places and of scoring, whatever the model."""
    if asked.benchmark != "ioi_task":
        return asked
    everywhere = isinstance(asked.units, str) and not asked.layers and not asked.positions
    units = IOI_UNITS if everywhere else asked.units
    return replace(asked, units=units, jointly=True, metric="logit_difference")


def as_benchmark(asked: VariableStudy, hosted: HostedModel) -> VariableStudy:
    """The study with all that its benchmark says, for a model of a language family."""
    if (task := asked.benchmark) is None:
        return asked
    asked = placed(asked)
    unit = Unit(layer=0, position=ALL) if isinstance(asked.units, str) else asked.units[0]
    model_class = type(hosted.modules["lm"]).__name__
    recipe, n = benchmark_recipe(task, asked.variable, model_class, width(hosted, unit))
    filled: dict[str, Any] = {"recipe": recipe, **_writing(asked, model_class)}
    plain = VariableStudy(variable=asked.variable)
    changes = {key: v for key, v in filled.items() if getattr(asked, key) == getattr(plain, key)}
    featurizer = asked.featurizer
    if featurizer.kind == "das" and featurizer.n is None:
        changes["featurizer"] = replace(featurizer, n=n)
    return replace(asked, **changes)


def _writing(asked: VariableStudy, model_class: str) -> dict[str, Any]:
    """How many tokens the baselines write, and how they compare numbers."""
    if asked.benchmark == "arithmetic":
        several = model_class == "Gemma2ForCausalLM"  # it spells digits
        return {"new_tokens": 3 if several else 1, "checker": "same_number"}
    return {"new_tokens": 2} if asked.benchmark == "ravel_task" else {}
