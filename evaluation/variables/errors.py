"""What the study of a causal variable refuses."""

from models.errors import Refusal


class UnknownUnit(Refusal):
    """A place of a causal variable that the model or the rows do not have."""

    def __init__(self, unit: str, problem: str, param: str = "units") -> None:
        super().__init__(
            f"{unit}: {problem}",
            remedy="Name a layer (and head) of the model and a position of the rows.",
            param=param,
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
