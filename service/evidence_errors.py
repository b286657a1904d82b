"""What evaluations and their policies refuse."""

from collections.abc import Sequence

from models.errors import Refusal


class FeatureNotVerified(Refusal):
    """The model's policy asks for a passed feature gate before a feature may steer."""

    def __init__(self, sae: str, features: Sequence[int], model: str) -> None:
        named = ", ".join(map(str, features))
        super().__init__(
            f"No feature_gate was passed by feature {named} of {sae} in {model}.",
            remedy=f'POST /v1/evaluations with kind "feature_gate", model "{model}", a dataset '
            f'about the concept and params {{"sae": "{sae}", "features": [{named}], '
            '"variable": ...}; steer with it once its verdict is pass.',
            param="steering",
        )


class EditNotAudited(Refusal):
    """The model's policy asks for a passed audit before an edit takes an alias."""

    def __init__(self, reference: str, model: str) -> None:
        super().__init__(
            f"No edit_audit was passed by {reference} in {model}.",
            remedy=f'POST /v1/evaluations with kind "edit_audit", model "{model}", '
            f'edits ["{reference}"] and suites of what it should leave alone; '
            "move the alias once its verdict is pass.",
            param="version",
        )


class EvaluationTooLong(Refusal):
    """An evaluation that used up its own budget."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"It was not ready within the {seconds:g} seconds of its budget.",
            remedy="Ask for fewer examples, layers or units, or for a longer budget.max_seconds.",
            param="budget.max_seconds",
        )


class NoSuchArtifact(Refusal):
    """An evaluation has no file of that name, or nothing to export in that format."""

    def __init__(self, evaluation: str, name: str, there: Sequence[str]) -> None:
        super().__init__(
            f"{evaluation} has no {name!r}.",
            remedy=f"It has: {', '.join(there)}.",
            param="name",
        )


class WrongRows(Refusal):
    """A data set without the rows that a kind of evaluation reads."""

    def __init__(self, kind: str, rows: str, dataset: str) -> None:
        super().__init__(
            f"{kind} reads {rows}, and {dataset} has none.",
            remedy=f"POST /v1/datasets with {rows}, or with a generator, which makes both.",
            param="dataset",
        )
