"""What the circuit track refuses."""

from models.errors import Refusal


class UnknownEdge(Refusal):
    """A file or a request names an edge or a node that the graph does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The graph has no {name!r}.",
            remedy="Nodes are input, a<layer>.h<head>, m<layer> and logits; an edge goes forward.",
            param="edges",
        )


class NoGraph(Refusal):
    """A model whose layers are not written as heads and an MLP that can be told apart."""

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(
            f"{model} has no graph of heads and MLPs: {problem}.",
            remedy="Choose one of the families GPT-2, Llama, Mistral, Qwen 2 or 3, Gemma 2 or 3.",
            param="model",
        )


class BadCircuit(Refusal):
    """Settings of a circuit evaluation that contradict each other."""

    def __init__(self, problem: str, remedy: str, param: str) -> None:
        super().__init__(problem, remedy=remedy, param=param)


class TooFewPairs(Refusal):
    """Too few pairs of prompts are left to find a circuit and to judge it."""

    def __init__(self, kept: int, needed: int) -> None:
        super().__init__(
            f"{kept} pairs of prompts can be used; {needed} are needed.",
            remedy="Give more pairs; the report of dropped rows says why the others fell out.",
            param="pairs",
        )


class UnreadableCircuit(Refusal):
    """A submission file that is not of either layout, or is of another graph."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"{where}: {problem}",
            remedy="docs/circuits.md describes both layouts.",
            param="file",
        )
