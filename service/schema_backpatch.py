"""What requests for calibrations of back-patching look like."""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from service.schema import NAME, Lenient, plain
from steerers.methods.back_patch import WIDEST

_MOST_EXAMPLES = 100_000
Said = Annotated[str, AfterValidator(plain), Field(min_length=1, max_length=20_000)]
_Label = Annotated[str, AfterValidator(plain), Field(min_length=1, max_length=1_000)]
_Labels = Annotated[list[_Label], Field(max_length=1_000)]


def _odd(window: int) -> int:
    if window % 2 == 0:
        raise ValueError("must be odd")
    return window


_Window = Annotated[int, Field(ge=1, le=WIDEST), AfterValidator(_odd)]
_Share = Annotated[float, Field(gt=0, lt=1)]


class PlanUse(Lenient):
    """One plan of a grid."""

    source: Annotated[int, Field(ge=1, le=1_000)]
    target: Annotated[int, Field(ge=0, le=1_000)]
    window: _Window = 1


class ExampleRow(Lenient):
    """One question about pictures and its answer: a line of `examples.jsonl`."""

    id: Annotated[str, AfterValidator(plain), Field(max_length=200)] = ""
    """Its number in the list when left out."""
    image: Annotated[str, Field(max_length=100_000_000)] | None = None
    """A data URI, or the name of a file in the archive."""
    images: Annotated[list[Annotated[str, Field(max_length=100_000_000)]], Field(max_length=64)] = (
        Field(default_factory=list)
    )
    """Several, in front of the question in this order."""
    question: Said
    answer: _Label
    labels: _Labels = Field(default_factory=list)
    """What an answer can be; those of the request when left out."""
    description: Said | None = None
    """The words that say what the picture shows: for the control."""
    text: Said | None = None
    """The question in words, `description` in it; `description question` when left out."""

    @model_validator(mode="after")
    def _shows_and_tells(self) -> "ExampleRow":
        if bool(self.images) == (self.image is not None):
            raise ValueError("an example has an image, or images")
        if self.text is not None and (self.description or "") not in self.text:
            raise ValueError("the description does not stand in the text")
        if self.text is not None and self.description is None:
            raise ValueError("a text says with `description` which of its words are the picture")
        return self

    @property
    def pictures(self) -> list[str]:
        """One or several."""
        return self.images if self.image is None else [self.image]


class SearchBody(Lenient):
    """Successive halving: how many examples the first round sees, and how many plans go on."""

    first: Annotated[float, Field(gt=0, le=1)] = 0.125
    keep: _Share = 0.25
    answers: Annotated[int, Field(ge=1)] | None = None
    """What choosing may ask for in each form: fewer examples begin, or fewer plans."""


class SaveBody(Lenient):
    """The preset that the plan becomes, if it helps."""

    name: Annotated[str, Field(pattern=NAME)]
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9._-]{0,31}$")] | None = None
    """It is moved to the new version."""


def lines_of(text: str) -> list[Any]:
    """The objects of a JSONL text; ValueError with the number of the line that is none."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except ValueError:
            raise ValueError(f"line {number} is not JSON") from None
    return found


def _rows(value: object) -> object:
    return lines_of(value) if isinstance(value, str) else value


Rows = Annotated[
    list[ExampleRow],
    BeforeValidator(_rows, json_schema_input_type=str | list[ExampleRow]),
    Field(max_length=_MOST_EXAMPLES),
]


class CalibrationBody(Lenient):
    """`POST /v1/backpatch/calibrations`; with an archive, the field `request` of its form."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    examples: Rows = Field(default_factory=list)
    """Objects, or their lines as one text (JSONL); an archive has `examples.jsonl` instead."""
    labels: _Labels = Field(default_factory=list)
    """Of examples that have none; all answers of the examples where these are left out too."""
    plans: Annotated[list[PlanUse], Field(max_length=100_000)] = Field(default_factory=list)
    """The grid; every source above every target for each of `windows` when left out."""
    windows: Annotated[list[_Window], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [1, 3, 5]
    )
    search: SearchBody = SearchBody()
    metric: Literal["label", "exact"] = "label"
    positions: Literal["visual", "reference"] = "visual"
    choosing: _Share = 0.5
    """Share of the examples that choose; the others are reported."""
    control: bool = True
    """Whether the same is done in words."""
    resamples: Annotated[int, Field(ge=100, le=20_000)] = 2000
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    save: SaveBody | None = None
    save_anyway: bool = False
    """Saves the best plan even if it was not found to help."""
