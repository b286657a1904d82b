"""What the steerers refuse."""

from models.errors import Refusal


class BadDictionary(Refusal):
    """An SAE whose tensors or conventions do not fit together."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem, remedy="Check that the files are complete and of one SAE.", param="sae"
        )


class WrongDictionary(Refusal):
    """An SAE that was not trained on this model, by its site or its width."""

    def __init__(self, sae: str, problem: str) -> None:
        super().__init__(
            f"{sae} does not fit the model: {problem}",
            remedy="Use an SAE that was trained on this model.",
            param="sae",
        )


class UnknownFeature(Refusal):
    """A feature number that the SAE does not have."""

    def __init__(self, sae: str, feature: int, features: int) -> None:
        super().__init__(
            f"{sae} has no feature {feature}.",
            remedy=f"Features count from 0 to {features - 1}.",
            param="features",
        )
