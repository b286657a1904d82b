"""The behaviours in plain English, with word lists of our own."""

from evaluation.behaviours import attributes, choices, indirect_object
from evaluation.behaviours.vocabulary import Vocabulary

_NAMES = (
    "Anna Ben Chris Daniel Emma Frank Grace Henry Jack Jane Kate Laura Lucy Mark Martin Mary "
    "Nick Oliver Paul Peter Rachel Robert Rose Sam Sarah Simon Steve Susan Thomas Tom Victoria Will"
)
_TEMPLATES = (
    "When {a} and {b} walked into the {place}, {s} handed the {object} to",
    "After {a} and {b} had left the {place}, {s} offered the {object} to",
    "{a} and {b} were alone in the {place}, so {s} passed the {object} to",
    "Late in the evening {a} and {b} sat down in the {place}, and without a word {s} gave the "
    "{object} to",
    "Because {a} and {b} had talked all day at the {place}, {s} brought a small {object} for",
    "There was music in the {place}. {a} and {b} listened for a while. Then {s} lent the {object} "
    "to",
)
_PLACES = "bakery cinema garage hotel library museum office park restaurant school station theater"
_OBJECTS = "bag book bottle camera card coat key letter map phone ticket umbrella"
_LOOKS = (
    ("a ripe lemon", "yellow"),
    ("fresh grass", "green"),
    ("a ripe tomato", "red"),
    ("clean snow", "white"),
    ("a lump of coal", "black"),
    ("the clear sky", "blue"),
    ("a carrot", "orange"),
    ("milk chocolate", "brown"),
    ("a flamingo", "pink"),
    ("an eggplant", "purple"),
    ("a rain cloud", "gray"),
    ("a sunflower", "yellow"),
    ("a frog", "green"),
    ("a fire truck", "red"),
    ("a polar bear", "white"),
    ("a raven", "black"),
    ("a sapphire", "blue"),
    ("a pumpkin", "orange"),
    ("a coffee bean", "brown"),
    ("a young pig", "pink"),
    ("lavender", "purple"),
    ("an elephant", "gray"),
)
_COUNTRIES = (
    ("France", "Paris", "French", "Europe"),
    ("Germany", "Berlin", "German", "Europe"),
    ("Italy", "Rome", "Italian", "Europe"),
    ("Spain", "Madrid", "Spanish", "Europe"),
    ("Poland", "Warsaw", "Polish", "Europe"),
    ("Greece", "Athens", "Greek", "Europe"),
    ("Sweden", "Stockholm", "Swedish", "Europe"),
    ("Portugal", "Lisbon", "Portuguese", "Europe"),
    ("Japan", "Tokyo", "Japanese", "Asia"),
    ("China", "Beijing", "Chinese", "Asia"),
    ("Thailand", "Bangkok", "Thai", "Asia"),
    ("Iran", "Tehran", "Persian", "Asia"),
    ("Egypt", "Cairo", "Arabic", "Africa"),
    ("Morocco", "Rabat", "Arabic", "Africa"),
    ("Angola", "Luanda", "Portuguese", "Africa"),
    ("Senegal", "Dakar", "French", "Africa"),
    ("Cuba", "Havana", "Spanish", "North America"),
    ("Mexico", "Mexico City", "Spanish", "North America"),
    ("Peru", "Lima", "Spanish", "South America"),
    ("Chile", "Santiago", "Spanish", "South America"),
)

ENGLISH = Vocabulary(
    name="english",
    indirect_object=indirect_object.Wording(
        templates=_TEMPLATES,
        names=tuple(_NAMES.split()),
        places=tuple(_PLACES.split()),
        objects=tuple(_OBJECTS.split()),
    ),
    plus="Question: What is {first} plus {second}? Answer: ",
    minus="Question: What is {first} minus {second}? Answer: ",
    choices=choices.Wording(
        question="Question: We know that {thing} is {colour}. What is the color of {thing}?",
        end="Answer:",
        looks=_LOOKS,
        colours=tuple(dict.fromkeys(colour for _, colour in _LOOKS)),
    ),
    attributes=attributes.Wording(
        prompts={
            "capital": ("The capital of {entity} is",),
            "language": ("Most people in {entity} speak",),
            "continent": ("The country of {entity} lies in",),
        },
        neutral=("Last summer we read a long story about {entity}",),
        table={
            name: {"capital": capital, "language": language, "continent": continent}
            for name, capital, language, continent in _COUNTRIES
        },
    ),
)
