"""Causal models: variables in an order, each computed from those before it (MIB, section 4).

To swap a variable is to run the base with that variable held at the value which it has in the
counterfactual's run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.behaviours.errors import UnknownVariable

Values = Mapping[str, Any]
Mechanism = Callable[[Values], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalModel:
    """What is thought to happen between a prompt and its answer.

    Attributes:
        inputs: Variables that are given.
        mechanisms: The others in topological order, each with what computes it from the values of
            the inputs and of those before it. `prompt` and `answer` are among them.
    """

    name: str
    inputs: tuple[str, ...]
    mechanisms: Mapping[str, Mechanism]

    def run(self, inputs: Values, held: Values | None = None) -> dict[str, Any]:
        """The values of all variables.

        Args:
            inputs: A value for each input; whatever else is in there is left out.
            held: Variables that have these values whatever their mechanisms say.

        Raises:
            UnknownVariable: There is no such variable to hold.
            KeyError: An input is missing.
        """
        held = held or {}
        for name in held:
            self._known(name)
        values = {name: held.get(name, inputs[name]) for name in self.inputs}
        for name, mechanism in self.mechanisms.items():
            values[name] = held[name] if name in held else mechanism(values)
        return values

    def swap(self, base: Values, counterfactual: Values, *variables: str) -> dict[str, Any]:
        """The base's run with these variables as they are in the counterfactual's."""
        for name in variables:
            self._known(name)
        other = self.run(counterfactual)
        return self.run(base, {name: other[name] for name in variables})

    def _known(self, name: str) -> None:
        if name not in self.inputs and name not in self.mechanisms:
            raise UnknownVariable(name, (*self.inputs, *self.mechanisms))
