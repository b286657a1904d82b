"""Input scores: how often a feature is most active on one of its own lens tokens.

S_in(f) = share of top-activating sentences whose most active token is in K(f) (Arad et al. 2025).
Records come from outside, in the shape of Neuronpedia's feature record, where tokens are strings;
or from `steerers.activations`, where they are ids and are compared as ids.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import Ge

from models.hosted import HostedModel
from steerers.errors import BadRecord
from steerers.lens import language_of

MOST_ACTIVE_WITHOUT = 50.0
"""AxBench's stand-in for a largest activation that is not positive."""


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """How input scores are counted; the defaults are those of the paper's code.

    Attributes:
        min_sentences: With fewer there is no score.
        max_sentences: Only the first so many count.
        counting: Every sentence once, or every different token once.
    """

    min_sentences: Annotated[int, Ge(1)] = 10
    max_sentences: Annotated[int, Ge(1)] = 100
    counting: Literal["sentences", "tokens"] = "sentences"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


INPUT_REFERENCE = InputSettings()
INPUT_PAPER = InputSettings(min_sentences=20, counting="tokens")
INPUT_VARIANTS: Mapping[str, InputSettings] = {"reference": INPUT_REFERENCE, "paper": INPUT_PAPER}
"""Named settings: how the paper's code counts, and how the paper says it does."""


@dataclass(frozen=True, kw_only=True)
class InputScore:
    """One feature's record.

    Attributes:
        input_score: S_in; None if there are too few sentences.
        sentences: How many counted.
        reason: Why there is no score; empty if there is one.
    """

    feature: int
    input_score: float | None
    sentences: int
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def input_score(
    feature: int,
    most_active: Sequence[int | None],
    lens_tokens: Collection[int],
    settings: InputSettings = INPUT_REFERENCE,
) -> InputScore:
    """From the most active token of each sentence, the most activating sentence first.

    Args:
        feature: Its number.
        most_active: Ids; None where the token cannot be said as one, which counts as a miss.
        lens_tokens: K(f).
        settings: How it is counted.
    """
    counted: Sequence[int | None] = most_active[: settings.max_sentences]
    if len(counted) < settings.min_sentences:
        reason = f"{len(counted)} sentences; {settings.min_sentences} are needed."
        return InputScore(feature=feature, input_score=None, sentences=len(counted), reason=reason)
    if settings.counting == "tokens":
        counted = list(dict.fromkeys(counted))
    wanted = set(lens_tokens)
    share = sum(token in wanted for token in counted) / len(counted)
    return InputScore(feature=feature, input_score=share, sentences=len(counted))


def from_record(
    hosted: HostedModel,
    feature: int,
    record: Mapping[str, Any],
    lens_tokens: Collection[int],
    settings: InputSettings = INPUT_REFERENCE,
) -> InputScore:
    """The same from a feature record in Neuronpedia's shape.

    Raises:
        BadRecord: It is not in that shape.
    """
    tokens = [token_id(hosted, text) for text in most_active_texts(record)]
    return input_score(feature, tokens, lens_tokens, settings)


def most_active_texts(record: Mapping[str, Any]) -> list[str]:
    """Of each sentence the token whose value is the largest, the first of equals.

    Raises:
        BadRecord: The record is not in Neuronpedia's shape.
    """
    found = []
    for sentence in _sentences(record):
        tokens, values = sentence["tokens"], sentence["values"]
        found.append(tokens[max(range(len(values)), key=values.__getitem__)])
    return found


def max_activation(record: Mapping[str, Any]) -> float:
    """`maxValue` of the first sentence, as AxBench takes it: 50 if it is not positive."""
    first = next(iter(_sentences(record)), None)
    if first is None:
        return MOST_ACTIVE_WITHOUT
    largest = float(first.get("maxValue", max(first["values"])))
    return largest if largest > 0 else MOST_ACTIVE_WITHOUT


def token_id(hosted: HostedModel, text: str) -> int | None:
    """The reference's rule: ASCII "_" is a space, then the first id behind the tokenizer's own.

    None for a text that becomes no token.
    """
    ids = language_of(hosted).tokenize(hosted, text.replace("_", " "), special=False)
    return ids[0] if ids else None


def _sentences(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sentences = record.get("activations")
    if not isinstance(sentences, list):
        raise BadRecord("The record has no list of activations.")
    for sentence in sentences:
        tokens = sentence.get("tokens") if isinstance(sentence, Mapping) else None
        values = sentence.get("values") if isinstance(sentence, Mapping) else None
        if not (isinstance(tokens, list) and isinstance(values, list) and tokens):
            raise BadRecord("A sentence of the record lacks its tokens or values.")
        if len(tokens) != len(values):
            raise BadRecord(f"A sentence has {len(tokens)} tokens and {len(values)} values.")
    return sentences
