"""What requests about data sets and evaluations look like."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator

from service.errors import BadRequest, UnknownKey
from service.params import not_finite, spelled_out
from service.schema import Body

Generator = Literal["ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "ravel"]
PublicTask = Literal[
    "ioi",
    "copycolors_mcqa",
    "arc_easy",
    "arc_challenge",
    "arithmetic_addition",
    "arithmetic_subtraction",
    "ravel",
]
KindName = Literal["circuit", "causal_variable", "feature_gate", "layer_advice", "edit_audit"]
_Prompt = Annotated[str, Field(min_length=1, max_length=20_000)]
_Answer = Annotated[str, Field(max_length=1_000)]
_Signs = Annotated[list[Literal[-1, 1]], Field(min_length=2, max_length=2)]
_Places = Annotated[list[_Prompt], Field(min_length=2, max_length=2)]
_Key = Annotated[str, Field(min_length=1, max_length=200)]
_MOST_ROWS = 20_000
_MOST_PICTURES = 1_000
_PLAIN = ("bool", "int", "float", "str", "tuple", "list", "dict")
"""Types that a union may be of."""


class PairRow(Body):
    """Two prompts of equal length in tokens, and two answers between which they decide."""

    clean: _Prompt
    corrupted: _Prompt
    correct: Annotated[str, Field(min_length=1, max_length=1_000)]
    incorrect: Annotated[str, Field(min_length=1, max_length=1_000)]
    alike: Annotated[list[_Answer], Field(max_length=10)] = Field(default_factory=list)
    """Further answers that must have as many tokens as these, or the row falls out."""


class SwapRow(Body):
    """A base, a counterfactual, and by variable what the base says with the other's value."""

    base: _Prompt
    counterfactual: _Prompt
    base_answer: Annotated[str, Field(min_length=1, max_length=1_000)]
    counterfactual_answer: _Answer = ""
    expected: Annotated[dict[_Key, _Answer], Field(min_length=1, max_length=20)]
    positions: Annotated[dict[_Key, _Places], Field(max_length=20)] = Field(default_factory=dict)
    """By name a part of either prompt, whose last token is meant; `last_token` is always there."""
    of_set: Annotated[str, Field(max_length=200)] = ""
    """The set of counterfactuals that it belongs to."""
    distractor: _Answer = ""
    """The other candidate in the base, whose logit `logit_difference` takes from the answer's."""
    signs: Annotated[dict[_Key, _Signs], Field(max_length=20)] = Field(default_factory=dict)
    """By variable the signs of (token, position) in that difference after the swap."""


class PictureRow(Body):
    """Two pictures of equally many tokens, a question, and an answer to each."""

    question: _Prompt
    clean: Annotated[str, Field(max_length=1_000_000_000)]
    """A data URI: PNG, JPEG or WebP."""
    corrupted: Annotated[str, Field(max_length=1_000_000_000)]
    correct: Annotated[str, Field(min_length=1, max_length=1_000)]
    incorrect: Annotated[str, Field(min_length=1, max_length=1_000)]


class DatasetBody(Body):
    """`POST /v1/datasets`: rows, a public task's rows as published, or a generator's."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    pairs: Annotated[list[PairRow], Field(max_length=_MOST_ROWS)] = Field(default_factory=list)
    """For `circuit`, `layer_advice` and `edit_audit`."""
    swaps: Annotated[list[SwapRow], Field(max_length=_MOST_ROWS)] = Field(default_factory=list)
    """For `causal_variable` and `feature_gate`."""
    pictures: Annotated[list[PictureRow], Field(max_length=_MOST_PICTURES)] = Field(
        default_factory=list
    )
    """For `layer_advice` of `backpatch`."""
    task: PublicTask | None = None
    """Of MIB's public data sets: what `rows` are rows of."""
    rows: Annotated[list[dict[str, JsonValue]], Field(max_length=_MOST_ROWS)] = Field(
        default_factory=list
    )
    """As the data set is published; pairs and swaps are made of them."""
    generator: Generator | None = None
    vocabulary: Literal["miniature", "english"] = "english"
    n: Annotated[int, Field(ge=1, le=_MOST_ROWS)] = 100
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    pair_set: Annotated[str, Field(max_length=200)] | None = None
    """Counterfactuals of the pairs; the task's own when left out."""
    sets: Annotated[list[_Key], Field(max_length=20)] = Field(default_factory=list)
    """Counterfactuals of the interchanges; all of the task when left out."""
    variable: _Key | None = None
    """`ravel`: rows that ask for it, and per other attribute half as many (of `rows`: at most)."""
    answers: Literal["whole", "first"] = "whole"
    """`first`: answers of several tokens are known by their first, in pairs."""

    @model_validator(mode="after")
    def _one_source(self) -> "DatasetBody":
        own = [key for key in ("pairs", "swaps", "pictures") if getattr(self, key)]
        public = ["rows of a task"] if self.rows or self.task else []
        sources = [own, public, self.generator]
        if sum(map(bool, sources)) > 1:
            sent = ", ".join((*own, *public))
            raise ValueError(f"send rows ({sent}) or name a generator, not both")
        if not any(sources):
            raise ValueError(
                "send rows (pairs, swaps or pictures), a task with its rows, or name a generator"
            )
        if bool(self.rows) != (self.task is not None):
            raise ValueError("a public data set needs both task and rows, as published")
        self._nothing_ignored()
        return self

    def _nothing_ignored(self) -> None:
        of_public = ("pair_set", "sets", "variable")
        of_generator = (*of_public, "vocabulary", "n", "seed")
        known = of_generator if self.generator else of_public if self.task else ()
        for key in of_generator:
            if key in self.model_fields_set and key not in known:
                raise ValueError(f"rows were sent, and {key} says how rows are made")
        if self.variable is not None and "ravel" not in (self.generator, self.task):
            raise ValueError("only ravel takes variable; others have all their variables")


class Budget(Body):
    """When an evaluation ends at the latest."""

    max_examples: Annotated[int, Field(ge=1, le=_MOST_ROWS)] | None = None
    """Rows of each data set, the first ones."""
    max_seconds: Annotated[float, Field(gt=0, le=7 * 24 * 3600)] | None = None
    """The job fails after so long."""


class EvaluationBody(Body):
    """`POST /v1/evaluations`."""

    kind: KindName
    model: Annotated[str, Field(min_length=1, max_length=200)]
    edits: Annotated[list[_Key], Field(max_length=64)] = Field(default_factory=list)
    """Under which the model is looked at; for `edit_audit`, what is audited."""
    dataset: _Key | None = None
    """An id of `POST /v1/datasets`; `edit_audit` has suites instead."""
    suites: Annotated[dict[_Key, _Key], Field(max_length=32)] = Field(default_factory=dict)
    """`edit_audit`: data sets by name."""
    params: dict[str, JsonValue] = Field(default_factory=dict)
    """As the kind says: docs/causal-evidence.md lists them."""
    budget: Budget = Budget()
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Instead of `params.seed`."""

    @model_validator(mode="after")
    def _reads_something(self) -> "EvaluationBody":
        audits = self.kind == "edit_audit"
        if audits and self.dataset is not None:
            raise ValueError("kind edit_audit reads suites (data sets by name), not dataset")
        if audits and not self.suites:
            raise ValueError("kind edit_audit needs suites: data sets by name")
        if audits and not self.edits:
            raise ValueError("kind edit_audit needs edits: what is audited")
        if not audits and self.suites:
            raise ValueError(f"kind {self.kind} reads one dataset; suites are for edit_audit")
        if not audits and self.dataset is None:
            raise ValueError(f"kind {self.kind} needs dataset: an id of POST /v1/datasets")
        return self


class PolicyThresholds(Body):
    """What evidence must reach; what is left out is as the operator says."""

    tau: Annotated[float, Field(ge=0, le=1)] | None = None
    margin: Annotated[float, Field(ge=0, le=1)] | None = None
    kappa: Annotated[float, Field(gt=0)] | None = None
    rows: Annotated[int, Field(ge=1, le=_MOST_ROWS)] | None = None
    tolerance: Annotated[float, Field(ge=0, le=1)] | None = None
    pairs: Annotated[int, Field(ge=1, le=_MOST_ROWS)] | None = None


class PolicyBody(Body):
    """`POST /v1/policies`: what a tenant asks for beyond the operator, in place of the last one."""

    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """All of the tenant's models when left out."""
    feature_gate: Literal["required", "off"] | None = None
    edit_audit: Literal["required", "off"] | None = None
    unverified: Literal["refuse", "allow"] | None = None
    thresholds: PolicyThresholds = PolicyThresholds()

    def told(self) -> dict[str, Any]:
        """As settings name the keys, those that were given."""
        gates = ("feature_gate", "edit_audit")
        found: dict[str, Any] = {
            key: getattr(self, key) == "required" for key in gates if getattr(self, key)
        }
        if self.unverified is not None:
            found["unverified"] = self.unverified
        return {**found, **self.thresholds.model_dump(exclude_none=True)}


class ExportBody(Body):
    """`POST /v1/evaluations/{id}/export`: MIB's names of the cell."""

    format: Literal["mib-circuit", "mib-causal-variable"]
    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    """`ioi`, `arithmetic-addition`, ...; for variables `4_answer_MCQA`, `ravel_task`, ..."""
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    """Circuits: `gpt2`, `qwen2.5`, `gemma2`, `llama3`; variables name the class by themselves."""


def settings_of(kind: type, params: Mapping[str, Any], seed: int | None = None) -> Any:
    """The settings of a kind from its `params`: nothing is guessed, nothing is ignored.

    Raises:
        UnknownKey: A key that there is not, at any depth.
        BadRequest: A value out of its bounds, or a number that is none.
    """
    told = spelled_out(params) if seed is None else {**spelled_out(params), "seed": seed}
    for key in not_finite(told):
        raise BadRequest(f"{key} is no finite number.", remedy="Send a finite number.", param=key)
    for key in _unknown(kind, told, "params"):
        raise UnknownKey(key)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(told), strict=True)
    except ValidationError as error:
        path, problem = _told_error(error)
        raise BadRequest(
            f"{path}: {problem}.",
            remedy="docs/causal-evidence.md tells the params of each kind.",
            param=path,
        ) from None


def _told_error(error: ValidationError) -> tuple[str, str]:
    """The path of the first value that does not fit, and what would: of a union, any part."""
    every = error.errors(include_url=False, include_input=False)
    first = [one for one in every if one["loc"][:1] == every[0]["loc"][:1]]
    deepest = max(len(one["loc"]) for one in first)
    some = [one for one in first if len(one["loc"]) == deepest]
    path = ".".join(("params", *map(str, filter(_is_key, some[0]["loc"]))))
    return path, ", or: ".join(dict.fromkeys(one["msg"] for one in some))


def _is_key(part: int | str) -> bool:
    """Whether a part of a path is a key or a place, not the name of a union's part."""
    return isinstance(part, int) or (part.isidentifier() and part not in _PLAIN)


def told_settings(settings: Any) -> dict[str, Any]:
    """Settings as a job stores them."""
    told: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return {k: v for k, v in told.items() if k != "kind" or _sorts(type(settings))}


def _unknown(kind: type, told: Any, path: str) -> Iterator[str]:
    """Paths of keys that the dataclass does not have."""
    if not isinstance(told, Mapping):
        return
    hints = get_type_hints(kind, include_extras=True)
    known = {f.name for f in fields(kind) if f.init and f.name != "kind"} | _sorts(kind)
    for key, value in told.items():
        if key not in known:
            yield f"{path}.{key}"
            continue
        for inner in _dataclasses(hints[key]):
            some = value if isinstance(value, list) else [value]
            for i, one in enumerate(some):
                place = f"{path}.{key}" + (f".{i}" if isinstance(value, list) else "")
                yield from _unknown(inner, one, place)


def _sorts(kind: type) -> set[str]:
    """`kind` is a setting where it is not merely the name of the settings."""
    hint = get_type_hints(kind).get("kind")
    return {"kind"} if hint is not None and len(get_args(hint)) > 1 else set()


def _dataclasses(hint: Any) -> Iterator[type]:
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for part in get_args(hint):
        yield from _dataclasses(part)
