"""What a request to a language model may not ask for: beyond the operator's bounds, or not offered.

Each refusal names the key.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.errors import BadPart
from service.backpatching import KIND, is_backpatch
from service.errors import BadRequest, BadSteering, NotOffered, TooMuch
from service.limits import check_edits, within
from service.resolving import Wanted
from service.schema_language import ChatBody, CompletionBody, GenerationBody, Message, Part
from service.schema_steering import Entry, Features, PresetUse, Together, places_of
from service.settings import Limits

NO_TOOLS = "hosted models do not call tools."


def check_chat(body: ChatBody, limits: Limits) -> None:
    """Refuse what chat cannot honour or the operator does not allow.

    Raises:
        NotOffered: Tools, parts that are no texts and no pictures, other formats than text.
        BadPart: A video.
        TooMuch: Naming the key, what was asked and the limit.
    """
    for param, reason in _unoffered(body):
        raise NotOffered(param, reason)
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest(
            "top_logprobs goes with logprobs.", remedy="Set logprobs to true.", param="top_logprobs"
        )
    written = sum(len(part.text or "") for m in body.messages for part in m.content or ())
    asked: dict[str, tuple[float, float]] = {
        "messages": (len(body.messages), limits.messages),
        "max_completion_tokens": (body.max_completion_tokens or 0, limits.max_tokens),
        "top_logprobs": (body.top_logprobs or 0, limits.top_logprobs),
    }
    within(asked)
    within({"messages": (written, limits.text_characters)})
    pictures = sum(part.image_url is not None for m in body.messages for part in m.content or ())
    if pictures > limits.input_pictures:
        raise TooMuch("messages", pictures, limits.input_pictures, " pictures")
    _check_generation(body, 1, limits)
    if isinstance(body.backpatch, PresetUse):
        _alone(body.backpatch, "backpatch")


def check_completion(body: CompletionBody, limits: Limits) -> None:
    """Refuse what a completion cannot honour or the operator does not allow.

    Raises:
        NotOffered: `suffix`, a `best_of` that differs from `n`, log-probabilities of the prompt.
        TooMuch: Naming the key, what was asked and the limit.
    """
    if body.suffix:
        raise NotOffered("suffix", "hosted models write on; they do not fill gaps.")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise NotOffered("best_of", "every choice that is made is given out (`n`).")
    if body.echo and body.logprobs is not None:
        raise NotOffered("echo", "log-probabilities of a prompt are not told.")
    within(
        {
            "prompt": (len(body.prompt), limits.prompts),
            "logprobs": (body.logprobs or 0, limits.top_logprobs),
        }
    )
    within({"prompt": (sum(map(len, body.prompt)), limits.text_characters)})
    _check_generation(body, len(body.prompt), limits)


def check_steering(entries: Sequence[Entry], limits: Limits) -> None:
    """Refuse keys of `steering` that do not go together, and too many or too strong ones."""
    count = 0
    for where, entry in zip(places_of(entries), entries, strict=True):
        if getattr(entry, "kind", None) == KIND:
            continue  # its own schema says all, and `check_wanted` bounds it
        if isinstance(entry, PresetUse):
            _alone(entry, where)
        elif isinstance(entry, Together | Features):
            _fits_together(entry, where)
            _has_meaning(entry, where)
        for key, strength in _strengths(entry, where):
            within({key: (abs(strength), limits.steering_strength)})
        count += len(_uses(entry, "features")) + len(_uses(entry, "vectors")) or 1
    within({"steering": (count, limits.steering)})


def _strengths(entry: Entry, where: str) -> Iterator[tuple[str, float]]:
    """Every strength that an entry says, with its key."""
    yield f"{where}.strength", getattr(entry, "strength", None) or 0.0
    for kind in ("features", "vectors"):
        for j, use in enumerate(_uses(entry, kind)):
            yield f"{where}.{kind}[{j}].strength", use.strength or 0.0


def _uses(entry: Entry, kind: str) -> Sequence[Any]:
    return getattr(entry, kind, ())


def check_wanted(wanted: Wanted, limits: Limits, *, compare: bool) -> None:
    """Refuse more steering than allowed, however it was named, and a comparison with itself."""
    steering = wanted.steering
    plans = [entry for entry in steering if is_backpatch(entry)]
    changes = sum(entry.changes for entry in steering) - len(plans)
    within({"steering": (changes, limits.steering)})
    for plan in plans:
        within({f"{plan.place}.loops": (plan.method.loops, limits.backpatch_loops)})
    if compare and not (steering or wanted.edits):
        raise BadRequest(
            "There is nothing to compare: no edit, steering or back-patching is named.",
            remedy="Name one (`edits`, `steering`, `backpatch`, or in the model's name), or leave "
            "compare out.",
            param="compare",
        )


def _check_generation(body: GenerationBody, prompts: int, limits: Limits) -> None:
    if body.stream_options is not None and not body.stream:
        raise BadRequest(
            "stream_options goes with stream.", remedy="Set stream to true.", param="stream_options"
        )
    _check_choices(body, prompts, limits)
    asked: dict[str, tuple[float, float]] = {
        "max_tokens": (body.max_tokens or 0, limits.max_tokens),
        "stop": (len(body.stop or ()), limits.stop),
        "logit_bias": (len(body.logit_bias or ()), limits.logit_bias),
    }
    within(asked)
    check_edits(body.edits, limits)
    check_steering(body.steering, limits)


def _check_choices(body: GenerationBody, prompts: int, limits: Limits) -> None:
    """Refuse more rows than allowed: `n` of each prompt, and as many twins to compare."""
    twins = 2 if body.compare else 1
    within({"prompt": (prompts * twins, limits.choices)})
    most, each = limits.choices // (prompts * twins), (body.n or 1)
    if each > most:
        why = [f" with {prompts} prompts"] * (prompts > 1) + [" with compare"] * body.compare
        raise TooMuch("n", each, most, " and".join(why))


def _unoffered(body: ChatBody) -> Iterator[tuple[str, str]]:
    """Keys that the stock client knows and no hosted model can honour, with the reason."""
    if body.tools:
        yield "tools", NO_TOOLS
    if body.tool_choice not in (None, "none", "auto"):
        yield "tool_choice", NO_TOOLS
    if body.functions:
        yield "functions", NO_TOOLS
    if body.function_call not in (None, "none", "auto"):
        yield "function_call", NO_TOOLS
    if body.response_format not in (None, {"type": "text"}):
        yield "response_format", "answers are text; a format cannot be forced."
    if body.modalities not in (None, [], ["text"]):
        yield "modalities", "hosted models answer in text."
    for i, message in enumerate(body.messages):
        yield from _unread(message, f"messages[{i}]")


def _of_tools(message: Message, where: str) -> Iterator[tuple[str, str]]:
    """What stands in a message of a conversation with tools."""
    if message.role in ("tool", "function"):
        yield f"{where}.role", NO_TOOLS
    if message.tool_calls:
        yield f"{where}.tool_calls", NO_TOOLS
    if message.function_call is not None:
        yield f"{where}.function_call", NO_TOOLS
    if message.tool_call_id is not None:
        yield f"{where}.tool_call_id", NO_TOOLS
    if message.name is not None:
        yield f"{where}.name", "chat templates have no place for a speaker's name."


def _unread(message: Message, where: str) -> Iterator[tuple[str, str]]:
    yield from _of_tools(message, where)
    if not message.content:
        raise BadRequest(
            f"{where} says nothing.",
            remedy="Give it a text, or leave the message out.",
            param=f"{where}.content",
        )
    for j, part in enumerate(message.content):
        yield from _of_part(part, message.role, f"{where}.content[{j}]")


def _of_part(part: Part, role: str, where: str) -> Iterator[tuple[str, str]]:
    """What a part has that is not read; BadRequest for one that does not say what it is."""
    if part.type in _VIDEOS:
        raise BadPart(
            "videos are not taken",
            where,
            remedy="Send some of its frames as pictures, each an `image_url` part.",
        )
    if part.type not in _WRITTEN:
        yield where, f"models read texts and pictures, no parts of the type {part.type!r}."
        return
    if getattr(part, part.type) is None:
        problem, remedy = f"{where} has no {part.type}.", f"Write {_WRITTEN[part.type]}."
        raise BadRequest(problem, remedy=remedy, param=f"{where}.{part.type}")
    for other in Part.model_fields.keys() - {"type", part.type}:
        if getattr(part, other) is not None:
            raise BadRequest(
                f"{where} is of the type {part.type!r}; its {other} would be ignored.",
                remedy="Send it as a part of its own.",
                param=f"{where}.{other}",
            )
    if part.image_url is not None and role != "user":
        yield where, f"chat templates have no place for a picture of the {role}."


_VIDEOS = ("video_url", "video")
_WRITTEN = {
    "text": '{"type": "text", "text": "..."}',
    "image_url": '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}',
}
"""By type, which is also the key that it has, a part that is read."""


def _alone(entry: PresetUse, where: str) -> None:
    for key in entry.beside:
        raise BadSteering(
            f"A preset keeps its own settings; {key} stands beside it.",
            remedy="Send `preset` alone, or make another version of the preset.",
            param=f"{where}.{key}",
        )


def _fits_together(entry: Any, where: str) -> None:
    """BadSteering unless the entry says one thing, and all of it."""
    direct = bool(entry.features or _uses(entry, "vectors"))
    if entry.concept is None and not direct:
        raise BadSteering(
            "Nothing says where to steer.",
            remedy="Name a preset, a concept with its strength, features, or vectors.",
            param=where,
        )
    if entry.concept is not None and not entry.concept.strip():
        raise BadSteering(
            "A concept has a word.", remedy="Say what to write about.", param=f"{where}.concept"
        )
    if entry.concept is not None and direct:
        raise BadSteering(
            "A concept and features or vectors stand in one entry.",
            remedy="Send a list of two entries: they add up.",
            param=f"{where}.concept",
        )
    _check_strengths(entry, where)
    if entry.a_max == "live":
        raise BadSteering(
            "The largest code cannot be taken anew at every token yet.",
            remedy="Use `neutral` (as scores are measured) or `prompt`.",
            param=f"{where}.a_max",
        )


def _check_strengths(entry: Any, where: str) -> None:
    """BadSteering unless everything that needs a strength has one, and nothing else."""
    if entry.mode == "ablate":
        given = [
            f"features[{i}].strength"
            for i, use in enumerate(entry.features)
            if use.strength is not None
        ]
        if given or entry.strength is not None:
            raise BadSteering(
                "`ablate` takes a feature away: there is no strength.",
                remedy="Leave the strength out, or use mode multiply.",
                param=f"{where}.{given[0] if given else 'strength'}",
            )
        return
    if (entry.concept is None) != (entry.strength is None):
        raise BadSteering(
            "`strength` belongs to `concept`, and the other way round.",
            remedy="Give the concept a strength; features and vectors have their own.",
            param=f"{where}.strength",
        )
    for i, use in enumerate(entry.features):
        if use.strength is None:
            raise BadSteering(
                f"Feature {use.feature} has no strength.",
                remedy=f"Give it one; only mode ablate needs none, this is {entry.mode}.",
                param=f"{where}.features[{i}].strength",
            )


_GOES_WITH: Mapping[str, str] = {
    "sae": "a concept",
    "count": "a concept",
    "mode": "features or a concept",
    "a_max": "features or a concept",
    "min_output_score": "features or a concept",
    "on_low_score": "features or a concept",
    "clamp_in": "features or a concept in mode clamp or min_clamp",
    "unit": "vectors",
    "sites": "vectors",
}
"""Keys that would change nothing without another one."""


def _has_meaning(entry: Any, where: str) -> None:
    """BadSteering for a key that would change nothing beside the others."""
    featured = bool(entry.features) or entry.concept is not None
    there = {
        "a concept": entry.concept is not None,
        "features or a concept": featured,
        "features or a concept in mode clamp or min_clamp": featured
        and entry.mode in ("clamp", "min_clamp"),
        "vectors": bool(_uses(entry, "vectors")),
    }
    for key, other in _GOES_WITH.items():
        if key in entry.model_fields_set and not there[other]:
            raise BadSteering(
                f"`{key}` would change nothing here: it goes with {other}.",
                remedy="Leave it out, or send a list of two entries: they add up.",
                param=f"{where}.{key}",
            )
