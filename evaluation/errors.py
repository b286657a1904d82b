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


class NotInWeights(Refusal):
    """A change of the stream, where only changes of weights can be looked at."""

    def __init__(self, verb: str) -> None:
        super().__init__(
            f"A {verb} is no change of weights, so no circuit of the changed model can be run.",
            remedy="Audit an edit: a delta or a LoRA adapter.",
            param="edits",
        )


class NothingToTrace(Refusal):
    """Pairs between which the model does not decide, so that nothing can be restored."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            problem,
            remedy="Give pairs whose clean prompt the model answers and whose corrupted one not.",
            param="dataset",
        )


class UnusableExamples(Refusal):
    """Examples of a calibration that nothing can be learned from."""

    def __init__(
        self,
        problem: str,
        param: str = "examples",
        remedy: str = "docs/back-patching.md describes what an example holds.",
    ) -> None:
        super().__init__(problem, remedy=remedy, param=param)
