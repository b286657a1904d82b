"""The vocabularies that behaviours are told in: plain English, and the miniature's world."""

from collections.abc import Mapping

from evaluation.behaviours import attributes, choices, indirect_object
from evaluation.behaviours.english import ENGLISH
from evaluation.behaviours.vocabulary import Vocabulary
from miniature.prose import choices as told_choices
from miniature.prose import indirect_object as told_objects
from miniature.prose.knowledge import countries
from miniature.prose.people import FIRST_NAMES
from miniature.world import make_world


def vocabularies() -> Mapping[str, Vocabulary]:
    """By name."""
    return {v.name: v for v in (ENGLISH, miniature())}


def miniature() -> Vocabulary:
    """The forms in which the miniature's language model was told of these things."""
    looks = tuple((t, c) for t in told_choices.OBJECTS for c in told_choices.ALL_COLOURS)
    return Vocabulary(
        name="miniature",
        indirect_object=indirect_object.Wording(
            templates=told_objects.TEMPLATES,
            names=FIRST_NAMES,
            places=told_objects.PLACES,
            objects=told_objects.OBJECTS,
        ),
        plus="{first}+{second}=",
        minus="{first}-{second}=",
        choices=choices.Wording(
            question="The {thing} is {colour}. What colour is the {thing}?",
            end="Answer:",
            looks=looks,
            colours=told_choices.ALL_COLOURS,
        ),
        attributes=attributes.Wording(
            prompts={
                "president": ("The president of {entity} is",),
                "capital": ("The capital of {entity} is",),
                "language": ("The language of {entity} is",),
                "continent": ("{entity} lies in",),
                "flag": ("The flag of {entity} is",),
            },
            neutral=("Yesterday they spoke of {entity}",),
            table=_countries(),
        ),
    )


def _countries() -> Mapping[str, Mapping[str, str]]:
    world = make_world()
    return {
        c.name: {
            "president": world.holder("president", c.name.lower()).title(),
            "capital": c.capital,
            "language": c.language,
            "continent": c.continent,
            "flag": c.flag,
        }
        for c in countries(world)
    }
