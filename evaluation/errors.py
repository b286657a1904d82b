"""What floor 2 refuses."""

from models.errors import Refusal


class UnreadableCases(Refusal):
    """A file of cases that is not of a known shape, or has a row that cannot be used."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"{where}: {problem}",
            remedy="docs/evaluation.md describes the files that can be read.",
            param="cases",
        )


class ProtocolDiffers(Refusal):
    """A journal that was begun under other settings, so that its lines cannot be continued."""

    def __init__(self, where: str, differing: str) -> None:
        super().__init__(
            f"{where} was written under another {differing}.",
            remedy="Choose an empty folder for the output, or repeat the first run's settings.",
            param="out",
        )


class NotAJudge(Refusal):
    """A folder that holds no CLIP with a vision tower."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} holds no CLIP model with both towers.",
            remedy="Give a folder saved from `CLIPModel`, with its tokenizer.",
            param="judge",
        )


class NothingToJudge(Refusal):
    """A run without cases or without seeds."""

    def __init__(self) -> None:
        super().__init__(
            "There is nothing to evaluate: no case is left or no seed was asked for.",
            remedy="Ask for at least one case and one seed.",
            param="cases",
        )


class FitRefused(Refusal):
    """A case whose fact the service would not write; the run counts it and goes on.

    Attributes:
        why: The service's own code, as the report shows it.
    """

    def __init__(self, why: str, problem: str) -> None:
        super().__init__(problem, remedy=f"The service says {why!r}; docs/errors.md explains it.")
        self.why = why


class UnknownUnit(Refusal):
    """A place of a causal variable that the model or the rows do not have."""

    def __init__(self, unit: str, problem: str) -> None:
        super().__init__(
            f"{unit}: {problem}",
            remedy="Name a layer (and head) of the model and a position of the rows.",
            param="units",
        )


class NothingKept(Refusal):
    """A study none of whose rows can be used."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"No row is left: {what}",
            remedy="Bring rows that the model answers rightly, base and counterfactual.",
            param="dataset",
        )


class NoFeatures(Refusal):
    """A result over an empty set of features: nothing was changed, so nothing was found."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"No feature of {where} is chosen, so the swap changes nothing.",
            remedy="Train longer, name the features, or look at another layer and position.",
            param="featurizer",
        )


class BadStudy(Refusal):
    """Settings of a causal-variable study that do not fit the model, the rows or each other."""

    def __init__(self, problem: str, param: str) -> None:
        super().__init__(
            problem, remedy="docs/causal-variables.md lists what each setting needs.", param=param
        )


class BadFeaturizers(Refusal):
    """A file or folder of featurizers that cannot be read."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"{where}: {problem}",
            remedy="docs/causal-variables.md describes the layouts that can be read.",
            param="featurizers",
        )
