"""What the behaviours refuse."""

from collections.abc import Iterable

from models.errors import Refusal


class UnknownVariable(Refusal):
    """A causal model has no variable of that name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(
            f"There is no variable {name!r}.",
            remedy=f"Name one of: {', '.join(known)}.",
            param="variable",
        )


class UnknownSet(Refusal):
    """A behaviour has no counterfactuals of that name."""

    def __init__(self, name: str, behaviour: str, known: Iterable[str]) -> None:
        super().__init__(
            f"{behaviour} has no counterfactuals {name!r}.",
            remedy=f"Name one of: {', '.join(known)}.",
            param="set",
        )


class OddTable(Refusal):
    """A table of attributes from which not every counterfactual can be drawn."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"The table of attributes does not do: {problem}.",
            remedy="Give every entity an attribute, and every attribute two values or more.",
            param="table",
        )


class UnreadableRows(Refusal):
    """A file of prompts that cannot be read as the task's."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"{where}: {problem}",
            remedy="docs/causal-evidence.md describes the files that can be read.",
            param="dataset",
        )
