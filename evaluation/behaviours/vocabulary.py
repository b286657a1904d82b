"""All behaviours in one vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from evaluation.behaviours import arithmetic, attributes, choices, indirect_object
from evaluation.behaviours.behaviour import Behaviour


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The wordings of one language or world.

    Attributes:
        plus, minus: The prompts of sums and differences.
    """

    name: str
    indirect_object: indirect_object.Wording
    plus: str
    minus: str
    choices: choices.Wording
    attributes: attributes.Wording

    def behaviours(self) -> Mapping[str, Behaviour]:
        """By the names that MIB's submissions give the tasks."""
        told = {
            "ioi": indirect_object.indirect_object(self.indirect_object),
            "arithmetic-addition": arithmetic.arithmetic(arithmetic.Wording(prompt=self.plus)),
            "arithmetic-subtraction": arithmetic.arithmetic(
                arithmetic.Wording(prompt=self.minus, operator="minus")
            ),
            "mcqa": choices.choices(self.choices),
            "ravel": attributes.attributes(self.attributes),
        }
        return {name: replace(behaviour, name=name) for name, behaviour in told.items()}
